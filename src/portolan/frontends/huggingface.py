"""Hugging Face model folders on this machine: `config.json` and weights in safetensors, exported through torch.

Only classes of `transformers` itself are built: code that a folder brings along is never run, pickled weights are never
read, and nothing is fetched. Axes of rows and of tokens are free unless `--shapes` gives them sizes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portolan.core.frontend import FrontEnd, Made, Shapes
from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.errors import ModelError, NoBackend, UnsupportedOperator, UsageError
from portolan.frontends._needs import need
from portolan.frontends._verify import first_line

_CONFIG = "config.json"
_PICKLED = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack")
#: Rows and tokens of the example that a model is traced with: small, and no number that stands in a configuration.
_ROWS, _TOKENS = 2, 11
#: Samples of sound that a model is traced with: a second at the usual rate.
_SOUND = 16000
#: Outputs that are states for the next call, or inner values.
_INNER = ("loss", "past_key_values", "hidden_states", "attentions", "encoder_hidden_states", "encoder_attentions",
          "decoder_hidden_states", "decoder_attentions", "cross_attentions")  # fmt: skip


class HuggingFace(FrontEnd):
    """Local folders as `save_pretrained` writes them, with weights in safetensors."""

    name = "huggingface"
    forms = "a Hugging Face model folder"
    distributions = ("torch", "onnxscript", "transformers", "safetensors")
    modules = ("torch", "onnxscript", "transformers", "safetensors")
    fix = "pip install 'portolan[huggingface]'"

    def accepts(self, source: object) -> bool:
        """A folder with a `config.json`."""
        return isinstance(source, (str, Path)) and bool(str(source)) and (Path(source) / _CONFIG).is_file()

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd. The class is the first of `architectures`; inputs are those that it cannot do without."""
        need(self, source)
        folder = Path(str(source))
        config = _config(folder)
        _check_weights(folder)
        module = _module(folder, config)
        inputs = _inputs(module, str(folder))
        sizes = {key: axes for key, (_, axes) in inputs.items()} | dict(shapes or {})
        examples = {key: value for key, (value, _) in inputs.items()}
        wrapped = _wrapped(module, list(inputs))
        made = Made(wrapped, tuple(examples.values()), list(inputs), str(folder), folder.resolve().name)
        from portolan.frontends.torch_ import torch as torch_front_end

        try:
            return torch_front_end.convert(made, out, sizes, name)
        except UnsupportedOperator:
            raise
        except ModelError as error:
            if not any(isinstance(size, str) for shape in sizes.values() for size in shape):
                raise
            fixed = " ".join(f"--shapes {key}:{_text(value)}" for key, value in examples.items())
            raise ModelError(error.message, hint=f"export it with sizes that are fixed: `{fixed}`") from error


def _text(value: Any) -> str:
    return "x".join(map(str, (1, *value.shape[1:])))


def _config(folder: Path) -> dict[str, Any]:
    place = folder / _CONFIG
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
        architectures = config.get("architectures") or []
        if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
            raise ValueError("`architectures` is no list of names")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"`{place}` is not the configuration of a model: {first_line(error)}",
            hint="write the folder again with `model.save_pretrained(folder)`",
        ) from error
    if not architectures:
        raise ModelError(
            f"`{place}` names no architecture",
            hint='add the class to it, as `"architectures": ["BertModel"]`, or give `file.py:factory`',
        )
    return dict(config)


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = [name for name in _PICKLED if (folder / name).is_file()] + [p.name for p in folder.glob("*.bin")]
    if pickled:
        raise ModelError(
            f"the weights in `{folder}` are no safetensors: `{pickled[0]}` would have to be unpickled or converted",
            hint="load the model in code of your own and write it with `model.save_pretrained(folder)`",
        )
    raise ModelError(
        f"`{folder}` holds no weights: there is no `.safetensors` file in it",
        hint="copy `model.safetensors` beside `config.json`; a Git LFS clone needs `git lfs pull`",
    )


def set_broken_torchvision_aside() -> None:
    """A torchvision of another torch's build fails on import, and transformers with it; no model needs it."""
    if "torchvision" not in sys.modules:
        try:
            importlib.import_module("torchvision")
        except Exception:  # a RuntimeError of torch's: "operator torchvision::nms does not exist"
            sys.modules["torchvision"] = None  # type: ignore[assignment]


def _module(folder: Path, config: Mapping[str, Any]) -> Any:
    set_broken_torchvision_aside()
    transformers = runtime("transformers")
    import torch

    kind = config["architectures"][0]
    try:
        cls = getattr(transformers, kind, None)
    except Exception as error:  # its modules are imported here, and what they need may be broken
        raise NoBackend(
            f"transformers cannot import its own `{kind}`: {first_line(error)}", hint=f"repair it: {HuggingFace.fix}"
        ) from error
    if not isinstance(cls, type) or not hasattr(cls, "from_pretrained"):
        own = "the folder brings code of its own for it, which is not run" if "auto_map" in config else (
            f"transformers {transformers.__version__} has no such class"
        )  # fmt: skip
        raise ModelError(
            f"`{folder}` is a `{kind}`, which cannot be built: {own}",
            hint="build the model in code of your own: `file.py:factory`",
        )
    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module, about = cls.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False,
                attn_implementation="eager", dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # a damaged file, a configuration that does not fit, an option that a class lacks
        raise ModelError(
            f"`{folder}` cannot be loaded by transformers: {first_line(error)}",
            hint="write the folder again with `model.save_pretrained(folder)`",
        ) from error
    missing = sorted(about["missing_keys"])
    if missing or about.get("mismatched_keys"):
        raise ModelError(
            f"the weights in `{folder}` lack {len(missing) or 'some'} of the tensors of `{kind}`, such as "
            f"`{(missing or sorted(map(str, about['mismatched_keys'])))[0]}`",
            hint="they would be made up: name in `architectures` the class that the weights were saved from",
        )
    return module.eval()


def _wrapped(module: Any, names: list[str]) -> Any:
    """The module with tensors in, in this order, and a dict of tensors out: no cache, no inner states."""
    import torch

    plain = {key: False for key in ("use_cache", "output_attentions", "output_hidden_states")
             if key in inspect.signature(module.forward).parameters}  # fmt: skip
    for key in plain:
        if hasattr(module.config, key):
            setattr(module.config, key, False)

    class Wrapped(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: Any) -> dict[str, Any]:
            options = {"use_cache": False} if "use_cache" in plain else {}
            answer = self.model(**dict(zip(names, inputs, strict=True)), **options, return_dict=True)
            return {k: v for k, v in answer.items() if isinstance(v, torch.Tensor) and k not in _INNER}

    return Wrapped()


def _inputs(module: Any, source: str) -> dict[str, tuple[Any, tuple[int | str, ...]]]:
    """Per input, an example and its axes."""
    import torch

    config, main = module.config, module.main_input_name
    accepted = inspect.signature(module.forward).parameters
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[Any, tuple[int | str, ...]]] = {}
    both = hasattr(config, "vision_config") and hasattr(config, "text_config")
    if main == "input_ids" or (both and "input_ids" in accepted):
        found["input_ids"] = (_ids(config, generator), ("batch", "tokens"))
    if main == "pixel_values" or (both and "pixel_values" in accepted):
        height, width, channels = _image(config, source)
        image = torch.randn(_ROWS, channels, height, width, generator=generator)
        found["pixel_values"] = (image, ("batch", channels, height, width))
    if main == "input_values":
        found[main] = (torch.randn(_ROWS, _SOUND, generator=generator), ("batch", _SOUND))
    if main == "input_features":
        bins, frames = int(config.num_mel_bins), 2 * int(config.max_source_positions)
        found[main] = (torch.randn(_ROWS, bins, frames, generator=generator), ("batch", bins, frames))
    if not found:
        raise UsageError(
            f"what `{source}` takes is not known here: its input is called `{main}`",
            hint="give the model with example inputs: `file.py:factory`",
        )
    if "input_ids" in found and "attention_mask" in accepted:
        mask = torch.ones(_ROWS, _TOKENS, dtype=torch.int64)
        mask[-1, -3:] = 0  # padding, so that the comparison sees whether the mask is heeded
        found["attention_mask"] = (mask, ("batch", "tokens"))
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        found["decoder_input_ids"] = (_ids(config, generator)[:, :-4], ("batch", "decoder_tokens"))
    return found


def _ids(config: Any, generator: Any) -> Any:
    import torch

    inner = getattr(config, "text_config", config)
    vocabulary = int(getattr(inner, "vocab_size", 0)) or 1000
    low = min(5, vocabulary - 1)  # padding and other special tokens come first in most vocabularies
    return torch.randint(low, vocabulary, (_ROWS, _TOKENS), generator=generator)


def _image(config: Any, source: str) -> tuple[int, int, int]:
    inner = getattr(config, "vision_config", config)
    size = getattr(inner, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    return int(height), int(width), int(getattr(inner, "num_channels", 3))


huggingface = HuggingFace()
