"""The study: the search under goals, its ledger, its runner."""
