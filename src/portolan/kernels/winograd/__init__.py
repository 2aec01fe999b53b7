"""Convolutions of 3 by 3 with fewer products."""
