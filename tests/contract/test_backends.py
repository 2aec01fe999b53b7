"""The built-in backends keep the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from portolan.backends.fake import fake
from portolan.backends.onnxruntime import onnxruntime
from portolan.backends.openvino import openvino
from portolan.backends.reference import reference
from portolan.testing.backend import BackendContract


class TestReference(BackendContract):
    backend = reference


class TestOnnxRuntime(BackendContract):
    backend = onnxruntime


class TestOpenVino(BackendContract):
    backend = openvino


class TestFake(BackendContract):
    backend = fake

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def script(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path: Path = tmp_path_factory.mktemp("script") / "script.toml"
        path.write_text(
            "[variants.default]\nlatency_ms = 0.1\n"
            "[variants.slower]\nlatency_ms = 0.5\njitter = 0.1\nstarts = [1.0, 1.5]\nsize = 1000\n"
            "[variants.rough]\nlatency_ms = 0.1\nerror = 0.01\n"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PORTOLAN_FAKE", str(path))
            yield
