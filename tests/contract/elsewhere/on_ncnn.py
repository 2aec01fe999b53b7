"""ncnn keeps the contract for what it is made for, batches of one; run in its own environment."""

from __future__ import annotations

from pathlib import Path

from portolan.backends.ncnn import ncnn
from portolan.testing.backend import BackendContract
from portolan.testing.models import Case, cases, convolutions, perceptron


class TestNcnn(BackendContract):
    backend = ncnn
    refused = ("perceptron", "convolutions", "free-batch", "tokens", "several-outputs", "external")

    def cases(self, folder: Path) -> list[Case]:
        """Those that every backend gets, and the nets again for single rows."""
        return [convolutions(folder, rows=1), perceptron(folder, rows=1), *cases(folder)]
