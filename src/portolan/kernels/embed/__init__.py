"""Kernels inside other runtimes: as ONNX functions, and compiled behind each runtime's own door."""
