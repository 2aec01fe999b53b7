"""Kernels for chains of operators in any ONNX graph: found, written as kernels, raced, put in their place."""
