"""The same computations in eager PyTorch, as well as they are usually written, and arrays to run them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch._higher_order_ops.scan import scan

Array = np.ndarray[Any, Any]
Torch = Callable[..., torch.Tensor]


def window_attention(q: Any, k: Any, v: Any, bias: Any) -> torch.Tensor:
    """Dense, with a mask: the bias is gathered for all pairs."""
    n, w = q.shape[1], bias.shape[1]
    apart = torch.arange(n)[:, None] - torch.arange(n)[None]
    scores = q @ k.transpose(1, 2) * q.shape[2] ** -0.5 + bias[:, apart.clamp(0, w - 1)]
    return scores.masked_fill((apart < 0) | (apart >= w), float("-inf")).softmax(-1) @ v


def sdpa(q: Any, k: Any, v: Any, bias: Any) -> torch.Tensor:
    """The library's own attention, with bias and mask in one matrix."""
    n, w = q.shape[1], bias.shape[1]
    apart = torch.arange(n)[:, None] - torch.arange(n)[None]
    mask = bias[:, apart.clamp(0, w - 1)].masked_fill((apart < 0) | (apart >= w), float("-inf"))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask[None])[0]


def deformable(value: Any, size: Any, start: Any, place: Any, weight: Any) -> torch.Tensor:
    """The reference of Deformable DETR: one `grid_sample` for each level."""
    b, _, h, c = value.shape
    _, q, _, _, p, _ = place.shape
    sizes = [(int(y), int(x)) for y, x in size]
    parts = value.split([y * x for y, x in sizes], dim=1)
    grids = 2 * place - 1
    sampled = []
    for level, (y, x) in enumerate(sizes):
        image = parts[level].flatten(2).transpose(1, 2).reshape(b * h, c, y, x)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weight.transpose(1, 2).reshape(b * h, 1, q, len(sizes) * p)
    out = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1).view(b, h * c, q)
    return out.transpose(1, 2).reshape(b, q, h, c)


def tropical(a: Any, b: Any) -> torch.Tensor:
    """In chunks of 16 rows: the whole space at once takes longer."""
    return torch.cat([(a[i : i + 16, :, None] + b[None]).amax(1) for i in range(0, len(a), 16)])


def selective_scan(u: Any, dt: Any, a: Any, b: Any, c: Any) -> torch.Tensor:
    """A loop over time, with all that does not depend on the state computed before."""
    decay = (dt[:, :, None] * a[None]).exp()
    drive = (dt * u)[:, :, None] * b[:, None]
    state, out = torch.zeros_like(a), []
    for t in range(len(u)):
        state = decay[t] * state + drive[t]
        out.append(state @ c[t])
    return torch.stack(out)


def selective_scan_as_operator(u: Any, dt: Any, a: Any, b: Any, c: Any) -> torch.Tensor:
    """With torch's own scan, which Inductor compiles to a loop; a loop in Python it would write out step by step."""
    decay = (dt[:, :, None] * a[None]).exp()
    drive = (dt * u)[:, :, None] * b[:, None]

    def step(state: Any, now: Any) -> tuple[torch.Tensor, torch.Tensor]:
        state = now[0] * state + now[1]
        return state, state @ now[2]

    return scan(step, torch.zeros(u.shape[1], a.shape[1]), (decay, drive, c))[1]


#: How Inductor is best asked for a kernel, where that is not as eager PyTorch is.
FOR_INDUCTOR = {"selective_scan": selective_scan_as_operator}


def nearest(q: Any, p: Any) -> torch.Tensor:
    """All distances, then the best of each row."""
    return torch.cdist(q, p, p=1).topk(8, largest=False).values


def butterfly(x: Any, w: Any) -> torch.Tensor:
    """A reshape and a stack for each stage."""
    rows, n = x.shape
    for s in range(len(w)):
        step = 1 << s
        pairs = x.view(rows, n // (2 * step), 2, step)
        m = w[s].view(n // (2 * step), step, 2, 2)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        first = m[:, :, 0, 0] * low + m[:, :, 0, 1] * high
        second = m[:, :, 1, 0] * low + m[:, :, 1, 1] * high
        x = torch.stack([first, second], dim=2).reshape(rows, n)
    return x


def product(a: Any, b: Any) -> torch.Tensor:
    """OneDNN's product: `a @ b` asks MKL. The second matrix lies the way that oneDNN likes best."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t().contiguous(), None, "none", [], "")


def arrays(name: str, sizes: tuple[int, ...], rng: np.random.Generator) -> list[Array]:
    """The arguments of a kernel, in the order of its own, in memory that torch allocated: it begins a cache line."""
    return [torch.from_numpy(a).clone().numpy() for a in _drawn(name, sizes, rng)]


def _drawn(name: str, sizes: tuple[int, ...], rng: np.random.Generator) -> list[Array]:

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    match name:
        case "window_attention":
            h, n, d, w = sizes
            return [normal(h, n, d), normal(h, n, d), normal(h, n, d), normal(h, w)]
        case "deformable":
            (b,) = sizes
            levels = np.array([(84, 117), (42, 59), (21, 30), (11, 15)], np.int32)
            counts = levels.prod(1)
            start = np.concatenate([[0], counts.cumsum()[:-1]]).astype(np.int32)
            weight = np.exp(normal(b, 100, 8, 16))
            weight = (weight / weight.sum(-1, keepdims=True)).reshape(b, 100, 8, 4, 4)
            return [
                normal(b, int(counts.sum()), 8, 32),
                levels,
                start,
                rng.random((b, 100, 8, 4, 4, 2), np.float32),
                weight,
            ]
        case "tropical" | "product":
            m, k, n = sizes
            return [normal(m, k), normal(k, n)]
        case "selective_scan":
            t, c, n = sizes
            dt = np.float32(0.1) * np.log1p(np.exp(normal(t, c)))
            return [normal(t, c), dt, -np.exp(normal(c, n) / 2), normal(t, n), normal(t, n)]
        case "nearest":
            q, p, d = sizes
            return [normal(q, d), normal(p, d)]
        case _:
            rows, stages = sizes
            return [normal(rows, 1 << stages), np.float32(0.7) * normal(stages, 1 << (stages - 1), 2, 2)]
