"""Trains `demo:digits` and writes it into the package: `python tools/train_digits.py [--out FOLDER]`.

Needs torch, onnxscript and scikit-learn, whose digits are 8x8 pictures of handwritten numbers: the test part of UCI's
"Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998, CC BY 4.0). A third of them, chosen once by a
seed, is held out: training never sees them, no choice is made by them, and they become the labelled data of the demo.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

PACKAGE = Path(__file__).parents[1] / "src" / "portolan" / "demo"
#: Hashes of the images that training saw; a test holds that none of them is in the shipped data.
ROWS = Path(__file__).parents[1] / "tests" / "unit" / "digits_training_rows.txt"
SEED = 20261120
HELD_OUT = 600
WIDTH = 48
EPOCHS = 60


class Block(nn.Module):
    """Two 3x3 convolutions with a skip connection, [N, width, H, W] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the block's output to its input."""
        return torch.relu(x + self.body(x))


class Digits(nn.Module):
    """A small residual network: `image` float32 [N, 1, 8, 8], values 0 to 1, to `logits` [N, 10]."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), Block(width)
        )
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.tail = nn.Sequential(Block(2 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores of the ten digits."""
        return self.tail(self.down(self.stem(image)))


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, then the held-out ones: float32 [n, 1, 8, 8] and int64 [n]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    if len(set(row_hashes(images))) < len(images):
        raise SystemExit("two images are equal: one might be trained on and the other held out")
    order = np.random.default_rng(SEED).permutation(len(images))
    held, rest = np.sort(order[:HELD_OUT]), np.sort(order[HELD_OUT:])
    labels = digits.target.astype(np.int64)
    return images[rest], labels[rest], images[held], labels[held]


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each batch moved by up to one pixel, with a little noise: [n, 1, 8, 8] to the same."""
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    padded = nn.functional.pad(images, (1, 1, 1, 1))[:, :, dy : dy + 8, dx : dx + 8]
    return padded + 0.03 * torch.randn(padded.shape, generator=generator)


def train(images: np.ndarray, labels: np.ndarray) -> Digits:
    """Trains on one thread, so that the result does not depend on the number of cores."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    model = Digits().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    steps = EPOCHS * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for batch in order[: len(x) // 64 * 64].split(64):
            loss = nn.functional.cross_entropy(model(shifted(x[batch], generator)), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)
    return model.eval()


def row_hashes(images: np.ndarray) -> list[str]:
    """The first 16 digits of each image's content hash."""
    return [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()[:16] for row in images]


def write(model: Digits, facts: dict[str, str], path: Path) -> None:
    """Exports with a free batch axis; `facts` become the file's metadata."""
    program = torch.onnx.export(
        model, (torch.zeros(2, 1, 8, 8),), input_names=["image"], output_names=["logits"], opset_version=18,
        dynamo=True, external_data=False, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    graph = program.model_proto
    strip(graph)
    del graph.metadata_props[:]
    for key, value in sorted(facts.items()):
        graph.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def strip(graph: onnx.ModelProto) -> None:
    """Drops what names the machine it was made on: stack traces with paths, and notes of the exporter."""
    graph.doc_string = ""
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del graph.graph.metadata_props[:]


def write_data(arrays: dict[str, np.ndarray], path: Path) -> None:
    """A compressed .npz with fixed dates, so that equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)


def main() -> None:
    """Trains, exports, and counts once how many held-out images are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE)
    out = parser.parse_args().out
    train_x, train_y, held_x, held_y = data()
    model = train(train_x, train_y)
    with torch.no_grad():
        right = int((model(torch.from_numpy(held_x)).argmax(1).numpy() == held_y).sum())
    rows = "\n".join(row_hashes(train_x)) + "\n"
    parameters = sum(p.numel() for p in model.parameters())
    facts = {
        "data": "UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998; CC BY 4.0), by scikit-learn",
        "held_out_accuracy": f"{right}/{len(held_y)}",
        "made_by": "tools/train_digits.py",
        "training_rows_sha256": hashlib.sha256(rows.encode()).hexdigest(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (ROWS if out == PACKAGE else out / ROWS.name).write_text(rows)
    write(model, facts, out / "digits.onnx")
    write_data({"image": held_x, "labels": held_y}, out / "digits.npz")
    print(f"{parameters:,} parameters, {right} of {len(held_y)} held-out images right ({right / len(held_y):.2%})")


if __name__ == "__main__":
    main()
