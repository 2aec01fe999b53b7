"""An ONNX graph as a program over arrays of any library: read once (`program`), run by a table of operators.

The table (`operators`) is written against a small namespace of array functions, so that PyTorch (`torch_`), NumPy
(`numpy_`, for sizes and constants) and others share it. onnx2torch was tried first: its last release (1.5.15 of 2024)
ends at operator set 16, has no recurrent nor `com.microsoft` operators, forgets which parameter was which initializer,
and serves torch alone.
"""
