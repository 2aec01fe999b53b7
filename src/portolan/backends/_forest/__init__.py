"""Ensembles of decision trees, read out of a graph and run by a kernel of our own."""
