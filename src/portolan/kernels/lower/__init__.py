"""From the tree to loops: where the layout of a kernel's loops is decided and written out."""
