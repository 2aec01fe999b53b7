"""The bundle: what is shipped, how it is made, verified and run."""
