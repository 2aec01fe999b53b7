"""Hugging Face model folders: what they become, and what in them is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from portolan.errors import ModelError, NoBackend
from portolan.frontends import load
from portolan.frontends.huggingface import set_broken_torchvision_aside
from support import huggingface_folders as folders

pytestmark = pytest.mark.torch


def test_rows_and_tokens_are_free_and_the_outputs_named(tmp_path: Path) -> None:
    folder = folders.tiny_bert(tmp_path / "tiny")
    model = load(folder, out=tmp_path / "out")
    assert [str(s) for s in model.signature.inputs] == [
        "input_ids:batchxtokens int64", "attention_mask:batchxtokens int64",
    ]  # fmt: skip
    assert [str(s) for s in model.signature.outputs] == ["logits:batchx2 float32"]
    assert (model.name, model.format) == ("tiny", "torch")
    assert model.program is not None


@pytest.mark.slow
def test_other_families(tmp_path: Path) -> None:
    model = load(folders.tiny_vit(tmp_path / "vit"), out=tmp_path / "out")
    assert [str(s) for s in model.signature.inputs] == ["pixel_values:batchx3x16x16 float32"]
    fixed = {"input_ids": (1, 8), "attention_mask": (1, 8)}
    model = load(folders.tiny_gpt2(tmp_path / "gpt2"), out=tmp_path / "out", shapes=fixed)
    assert [str(s) for s in model.signature.inputs] == ["input_ids:1x8 int64", "attention_mask:1x8 int64"]
    assert [str(s) for s in model.signature.outputs] == ["logits:1x8x200 float32"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration that names a class which exists, and no weights."""
    set_broken_torchvision_aside()
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    return tmp_path


def refused(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(folder, out=folder / "out")
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_pickled_weights_are_not_read(folder: Path) -> None:
    assert "holds no weights" in refused(folder).message
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    assert "`pytorch_model.bin` would have to be unpickled" in refused(folder).message


def test_configurations_that_say_nothing(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    assert "names no architecture" in refused(folder).message
    (folder / "config.json").write_text("[1, 2")
    assert "is not the configuration of a model" in refused(folder).message


def test_code_that_a_folder_brings_is_not_run(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "modeling_own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    own = {"architectures": ["OwnModel"], "auto_map": {"AutoModel": "modeling_own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(own))
    assert "the folder brings code of its own for it, which is not run" in refused(folder).message
    assert not (folder / "ran").exists()


def test_weights_that_are_not_all_there(tmp_path: Path) -> None:
    folder = folders.tiny_bert(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForQuestionAnswering"]}))
    assert "lack 2 of the tensors of `BertForQuestionAnswering`" in refused(folder).message


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NoBackend, match="needs transformers, which is not installed") as caught:
        load(folder, out=folder / "out")
    assert caught.value.hint == "pip install 'portolan[huggingface]'"
