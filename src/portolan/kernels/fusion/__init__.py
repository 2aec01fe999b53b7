"""Kernels for chains of operators in any ONNX graph: found, written in the kernels' tree, measured, put in their place."""
