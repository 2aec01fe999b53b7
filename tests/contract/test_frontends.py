"""Every front end that comes with Portolan keeps the contract."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from portolan.frontends import demo as demo_module
from portolan.frontends.demo import demo
from portolan.frontends.factory import factory
from portolan.frontends.huggingface import huggingface
from portolan.frontends.onnx_ import onnx
from portolan.frontends.sklearn_ import sklearn
from portolan.frontends.torch_ import torch
from portolan.frontends.trees import trees
from portolan.testing.frontend import FrontendContract, tiny_onnx
from support.huggingface_folders import tiny_bert

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
    front_end = factory

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
    program = factory.load(f"{folder / 'net.py'}:make", folder / "out").program
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


def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Rows of four features, and which of two classes each is."""
    rows = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    return rows, (rows[:, 0] + rows[:, 1] * rows[:, 2] > 0).astype(int)


class TestSklearnFile(FrontendContract):
    front_end = sklearn

    def source(self, folder: Path) -> Path:
        skops = pytest.importorskip("skops.io")
        pytest.importorskip("skl2onnx")
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        path = folder / "small.skops"
        skops.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(*labelled()), path)
        return path

    def damaged(self, folder: Path) -> Path:
        path = self.source(folder)
        path.write_bytes(path.read_bytes()[:500])
        return path


class TestLightGbmFile(FrontendContract):
    front_end = trees

    def source(self, folder: Path) -> Path:
        lightgbm = pytest.importorskip("lightgbm")
        pytest.importorskip("onnxmltools")
        settings = {"objective": "binary", "verbose": -1, "num_leaves": 5, "num_threads": 1}
        booster = lightgbm.train(settings, lightgbm.Dataset(*labelled()), num_boost_round=4)
        path = folder / "small.txt"
        booster.save_model(str(path))
        return path

    def damaged(self, folder: Path) -> Path:
        path = folder / "bad.txt"
        path.write_text("tree\nversion=v4\nnum_class=")
        return path


@pytest.mark.torch
@pytest.mark.slow
class TestHuggingFaceFolder(FrontendContract):
    front_end = huggingface

    def source(self, folder: Path) -> Path:
        return tiny_bert(folder / "tiny-bert")

    def damaged(self, folder: Path) -> Path:
        path = tiny_bert(folder / "bad-bert") / "model.safetensors"
        path.write_bytes(path.read_bytes()[:300])
        return path.parent
