"""Convolutions in ONNX Runtime's own form, where kernels of ours can take the place of some.

The runtime rewrites a graph so that convolutions hand each other tensors whose channels lie in blocks
(`com.microsoft.nchwc`). An operator in the model's own graph would have them brought into order before it, and back
behind it. So the runtime is asked for what it makes of the graph, layers are replaced in that, and the result is
loaded.

Which layers, a model says in its metadata, as the pass `winograd` measured it. A layer is named by the weights that the
runtime made for it: what another version or processor makes of them is no layer that was measured, and stays.
"""

FEATURE = "convolutions:winograd"
"""What the pass produces."""
