"""`demo:digits`: a small trained network and labelled images that training never saw, so that everything runs offline.

`digits.onnx` takes `image`, float32 [batch, 1, 8, 8] with values 0 to 1, and gives `logits`, float32 [batch, 10].
`digits.npz` holds 600 held-out images (`image`) with their `labels`, int64. Both are made by `tools/train_digits.py`;
the model's metadata say how many of the 600 it gets right. The images are the test part of UCI's "Optical Recognition
of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0), as scikit-learn carries it.
"""
