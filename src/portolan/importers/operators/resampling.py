"""Resize: one axis after the other, each new element a weighted sum of old ones whose places NumPy works out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from portolan.errors import UnsupportedOperator
from portolan.importers.operators.call import Call, Operator, sizes

if TYPE_CHECKING:
    import numpy as np

#: What one axis is made of: for each tap, which old element and with which weight, each [new].
Taps = list[tuple["np.ndarray", "np.ndarray"]]


def _resize(
    call: Call, x: Any, roi: np.ndarray | None = None, scales: np.ndarray | None = None, given: np.ndarray | None = None
) -> Any:  # fmt: skip
    if call.version < 11:
        import numpy as np

        scales, roi = np.array(call.get("scales")) if roi is None else roi, None  # as Upsample had it
    axes = [axis % len(x.shape) for axis in call.get("axes", range(len(x.shape)))]
    wanted = None if given is None or given.size == 0 else sizes(given)
    factors = _factors(call, [x.shape[axis] for axis in axes], scales, wanted)
    outside: Any = None
    for i, (axis, (new, factor)) in enumerate(zip(axes, factors, strict=True)):
        old = x.shape[axis]
        crop = None if roi is None or roi.size == 0 else (float(roi[i]), float(roi[i + len(axes)]))
        mode = call.get("coordinate_transformation_mode", "half_pixel" if call.version >= 11 else "asymmetric")
        if new == old and factor == 1 and mode != "tf_crop_and_resize":
            continue
        places = _origins(mode, old, new, factor, crop)
        if mode == "tf_crop_and_resize":
            line = ((places < 0) | (places > old - 1)).reshape([-1 if j == axis else 1 for j in range(len(x.shape))])
            outside = line if outside is None else outside | line
        x = _resampled(call, x, axis, _taps(call, places, old, factor))
    if outside is None or not outside.any():
        return x
    return call.xp.where(call.xp.asarray(outside), call.xp.full_like(x, call.get("extrapolation_value", 0.0)), x)


def _factors(
    call: Call, old: list[Any], scales: np.ndarray | None, wanted: list[Any] | None
) -> list[tuple[Any, Any]]:  # fmt: skip
    """New size and factor of each axis."""
    if wanted is None:
        if scales is None:
            raise UnsupportedOperator("`Resize` without sizes or scales", hint="export the model again")
        return [(int(n * s), float(s)) for n, s in zip(old, scales.tolist(), strict=True)]
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [(new, new / n) for n, new in zip(old, wanted, strict=True)]
    factor = (min if policy == "not_larger" else max)(new / n for n, new in zip(old, wanted, strict=True))
    return [(int(factor * n + 0.5), factor) for n in old]


def _origins(mode: str, old: int, new: int, factor: float, crop: tuple[float, float] | None) -> np.ndarray:
    """Where in the old axis each new element comes from."""
    import numpy as np

    steps = np.arange(new, dtype=np.float64)
    if mode == "asymmetric":
        return steps / factor
    if mode == "align_corners":
        return steps * (old - 1) / (old * factor - 1) if new > 1 else steps * 0
    if mode == "pytorch_half_pixel" and new == 1:
        return steps * 0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (steps + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        return old / 2 * (1 - new / (old * factor)) + (steps + 0.5) / factor - 0.5
    if mode == "tf_half_pixel_for_nn":
        return (steps + 0.5) / factor
    if mode == "tf_crop_and_resize" and crop is not None:
        begin, end = crop
        if new == 1:
            return 0.5 * (begin + end) * (old - 1) + steps * 0
        return begin * (old - 1) + steps * (end - begin) * (old - 1) / (new - 1)
    raise UnsupportedOperator(f"`Resize` with `{mode}` is not supported", hint="export it with `half_pixel`")


def _taps(call: Call, places: np.ndarray, old: int, factor: float) -> Taps:
    import numpy as np

    mode = call.get("mode", "nearest")
    if mode == "nearest":
        rounding = "round_prefer_floor" if call.version >= 11 else "floor"
        chosen = _nearest(places, call.get("nearest_mode", rounding))
        return [(np.clip(chosen, 0, old - 1).astype(np.int64), np.ones(len(places)))]
    shrunk = min(factor, 1.0) if call.get("antialias", 0) else 1.0
    reach, weigh = (1, _triangle) if mode == "linear" else (2, _cubic(call.get("cubic_coeff_a", -0.75)))
    first = int(np.floor(-reach / shrunk)) + 1
    low = np.floor(places)
    found = []
    for step in range(first, 2 - first):
        at, share = low + step, weigh(np.abs((step - (places - low)) * shrunk))
        if call.get("exclude_outside", 0):
            share = np.where((at < 0) | (at > old - 1), 0.0, share)
        found.append((np.clip(at, 0, old - 1).astype(np.int64), share))
    total = sum(share for _, share in found)
    return [(at, share / total) for at, share in found]


def _triangle(distance: np.ndarray) -> np.ndarray:
    import numpy as np

    found: np.ndarray = np.clip(1 - distance, 0, 1)
    return found


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    def weigh(d: np.ndarray) -> np.ndarray:
        import numpy as np

        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return weigh


def _resampled(call: Call, x: Any, axis: int, taps: Taps) -> Any:
    import numpy as np

    if len(taps) == 1:
        return call.xp.take(x, call.xp.asarray(taps[0][0]), axis)
    total: Any = None
    for at, share in taps:
        if not share.any():
            continue
        column = share.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(len(x.shape))])
        weight = call.xp.astype(call.xp.asarray(column), call.xp.dtype(x))
        term = call.xp.take(x, call.xp.asarray(at), axis) * weight
        total = term if total is None else total + term
    return total


def _nearest(places: np.ndarray, mode: str) -> np.ndarray:
    import numpy as np

    rounding: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: np.floor(p + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return rounding[mode](places)


OPERATORS: dict[str, Operator] = {
    "Resize": Operator(_resize, static=(1, 2, 3), folds=False),
    "Upsample": Operator(_resize, static=(1,), folds=False),
}
