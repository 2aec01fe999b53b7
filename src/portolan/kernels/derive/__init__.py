"""Derivatives of kernels, as kernels: reverse mode from tree to tree."""
