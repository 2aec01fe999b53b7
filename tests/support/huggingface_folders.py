"""Hugging Face model folders with small random models, as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def tiny_bert(folder: Path) -> Path:
    """A BERT classifier of two classes."""
    return _saved("BertForSequenceClassification", "BertConfig", folder, max_position_embeddings=40, **_SMALL)


def tiny_gpt2(folder: Path) -> Path:
    """A GPT-2 with 40 positions."""
    return _saved("GPT2LMHeadModel", "GPT2Config", folder, n_positions=40, n_embd=16, n_layer=1, n_head=2)


def tiny_vit(folder: Path) -> Path:
    """A ViT for images of 16 by 16."""
    return _saved("ViTForImageClassification", "ViTConfig", folder, image_size=16, patch_size=8, **_SMALL)


def _saved(model: str, config: str, folder: Path, **sizes: Any) -> Path:
    pytest.importorskip("torch")
    from portolan.core.silence import runtime
    from portolan.frontends.huggingface import set_broken_torchvision_aside

    set_broken_torchvision_aside()  # transformers remembers whether it was there
    pytest.importorskip("transformers")
    import torch

    transformers = runtime("transformers")
    torch.manual_seed(0)
    if "Image" not in model:
        sizes["vocab_size"] = 200
    getattr(transformers, model)(getattr(transformers, config)(**sizes)).save_pretrained(folder)
    return folder
