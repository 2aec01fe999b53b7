"""Every front end that comes with Portolan keeps the contract."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from portolan.frontends import demo as demo_module
from portolan.frontends.demo import demo
from portolan.frontends.onnx_ import onnx
from portolan.frontends.torch_ import torch
from portolan.testing.frontend import FrontendContract, tiny_onnx

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, image):
        return self.linear(self.conv(image).relu().mean((2, 3)))

def make():
    torch.manual_seed(0)
    return Net(), torch.randn(1, 3, 8, 8)
"""


class TestOnnx(FrontendContract):
    front_end = onnx

    def source(self, folder: Path) -> Path:
        return tiny_onnx(folder / "tiny.onnx")

    def damaged(self, folder: Path) -> Path:
        path = tiny_onnx(folder / "bad.onnx")
        path.write_bytes(path.read_bytes()[:100])
        return path


class TestDemo(FrontendContract):
    front_end = demo

    @pytest.fixture(autouse=True)
    def _demos(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path_factory.mktemp("demo")
        tiny_onnx(folder / "tiny.onnx")
        (folder / "broken.onnx").write_bytes(b"broken")
        monkeypatch.setattr(demo_module, "folder", lambda: folder)

    def source(self, folder: Path) -> str:
        return "demo:tiny"

    def damaged(self, folder: Path) -> str:
        return "demo:broken"


@pytest.mark.torch
class TestTorchFactory(FrontendContract):
    front_end = torch

    def source(self, folder: Path) -> str:
        (folder / "net.py").write_text(FACTORY)
        return f"{folder / 'net.py'}:make"

    def damaged(self, folder: Path) -> str:
        branch = "\n    def forward(self, image):\n        return image if image.sum() > 0 else -image\n"
        (folder / "bad.py").write_text(FACTORY.replace("\ndef make", branch + "\ndef make"))
        return f"{folder / 'bad.py'}:make"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for all tests of a class: it takes seconds."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "net.py").write_text(FACTORY)
    program = torch.load(f"{folder / 'net.py'}:make", folder / "out").program
    assert program is not None
    return program


@pytest.mark.torch
class TestTorchProgram(FrontendContract):
    front_end = torch

    @pytest.fixture(autouse=True)
    def _keep(self, saved: Path) -> None:
        self.saved_program = saved

    def source(self, folder: Path) -> Path:
        return Path(shutil.copy(self.saved_program, folder / "net.pt2"))

    def damaged(self, folder: Path) -> Path:
        content = self.saved_program.read_bytes()
        path = folder / "bad.pt2"
        path.write_bytes(content[: len(content) // 2])
        return path
