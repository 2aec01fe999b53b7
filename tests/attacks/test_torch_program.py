"""A `.pt2` may hold pickled objects beside its weights. Loading one must not run them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from portolan.backends.torch import torch
from portolan.core.model import Model
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import ModelError
from portolan.testing.backend import python
from portolan.testing.models import this_machine

pytestmark = pytest.mark.torch

_EXPORT = """
import json, sys
import torch
folder, = json.loads(sys.argv[1])
class Payload:
    def __reduce__(self):
        return open, (f"{folder}/executed", "w")
torch.save((Payload(),), f"{folder}/payload.pt")
torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), f"{folder}/honest.pt2")
"""


def test_pickled_code_in_a_program_does_not_run(tmp_path: Path) -> None:
    python(_EXPORT, [str(tmp_path)])
    payload = (tmp_path / "payload.pt").read_bytes()
    forged = io.BytesIO()
    replaced = 0
    with zipfile.ZipFile(tmp_path / "honest.pt2") as honest, zipfile.ZipFile(forged, "w") as archive:
        for entry in honest.infolist():
            hit = "sample_inputs" in entry.filename
            replaced += hit
            archive.writestr(entry.filename, payload if hit else honest.read(entry))
    assert replaced == 1
    (tmp_path / "forged.pt2").write_bytes(forged.getvalue())
    spec = TensorSpec("x", "float32", (2,))
    model = Model(
        "forged", tmp_path / "none.onnx", "0" * 64, Signature((spec,), (spec,)), program=tmp_path / "forged.pt2"
    )
    with pytest.raises(ModelError):
        torch.compile(model, this_machine())
    assert not (tmp_path / "executed").exists()
