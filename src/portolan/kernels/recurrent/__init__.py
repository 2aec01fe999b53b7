"""Stacks of recurrent layers as kernels."""
