"""The HTML report: one offline file."""
