"""One file for each language that loops are printed in."""
