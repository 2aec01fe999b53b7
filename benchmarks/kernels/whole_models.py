"""Whole models with kernels in them, on every CPU runtime, against the same models without; exits 1 unless all gain.

    python benchmarks/kernels/whole_models.py [--threads 2] [--budget 60s] [--out FILE.jsonl]

Two models of PyTorch with random weights: a transformer whose attention sees a window of 128 of 1,024 tokens, with a
relative bias, and a state-space model in the manner of Mamba. Each is exported to ONNX with its operator as a function,
once more as the eager modules are (where PyTorch's exporter can: a loop over time is no graph), and raced on ONNX
Runtime and OpenVINO in processes of their own, interleaved, by the project's own races; in PyTorch against the eager
modules, in alternating blocks of one process. Compared is the faster of the plain export and the function's body.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import eager
import numpy as np
import onnx
import operators
import torch
from torch import nn

from portolan.core import registry
from portolan.core.graph import load_model
from portolan.core.recipe import Recipe
from portolan.kernels import Kernel
from portolan.kernels.arrays import sizes
from portolan.kernels.build import tuned_for
from portolan.kernels.compiler import find
from portolan.kernels.embed.carry import carry
from portolan.kernels.embed.ort import library
from portolan.kernels.embed.torch_ import operator, to_onnx
from portolan.kernels.verify import difference
from portolan.measure.environment import environment
from portolan.measure.race import Arm
from portolan.measure.race import race as raced
from portolan.study.builder import Builder, Samples
from portolan.study.optimize import read_samples
from portolan.study.probe import Session
from portolan.study.workspace import Workspace
from portolan.targets.local import local
from run import here, keep_memory, race, ratio

HEADS, WIDTH, TOKENS, WINDOW, LAYERS = 4, 256, 1024, 128, 4
CHANNELS, STATES, TIMES = 512, 16, 512
Function = Callable[..., torch.Tensor]


class Block(nn.Module):
    """Attention over a window, and a network of two layers; both added to what comes in."""

    def __init__(self, attend: Function) -> None:
        super().__init__()
        self.attend = attend
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.bias = nn.Parameter(0.1 * torch.randn(HEADS, WINDOW))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(self.first(x)).reshape(TOKENS, 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
        found = self.attend(heads[0].contiguous(), heads[1].contiguous(), heads[2].contiguous(), self.bias)
        x = x + self.out(found.permute(1, 0, 2).reshape(TOKENS, WIDTH))
        return x + self.mlp(self.second(x))


class Mamba(nn.Module):
    """A selective state-space block: projections, a short convolution, the scan, a gate."""

    def __init__(self, scan: Function) -> None:
        super().__init__()
        self.scan = scan
        self.norm = nn.LayerNorm(CHANNELS // 2)
        self.into = nn.Linear(CHANNELS // 2, 2 * CHANNELS)
        self.mix = nn.Conv1d(CHANNELS, CHANNELS, 4, groups=CHANNELS, padding=3)
        self.rates = nn.Linear(CHANNELS, CHANNELS)
        self.states = nn.Linear(CHANNELS, 2 * STATES)
        self.decay = nn.Parameter(-torch.exp(torch.randn(CHANNELS, STATES) / 2))
        self.out = nn.Linear(CHANNELS, CHANNELS // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, gate = self.into(self.norm(x)).chunk(2, -1)
        u = nn.functional.silu(self.mix(u.t()[None])[0, :, :TIMES].t())
        dt = 0.1 * nn.functional.softplus(self.rates(u))
        b, c = self.states(u).chunk(2, -1)
        y = self.scan(u.contiguous(), dt, self.decay, b.contiguous(), c.contiguous())
        return x + self.out(y * nn.functional.silu(gate))


def nets(name: str, made: Function) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The model with the kernel's operator, the same in eager PyTorch, and an input."""
    block, plain, shape = {
        "window_attention": (Block, eager.window_attention, (TOKENS, WIDTH)),
        "selective_scan": (Mamba, eager.selective_scan, (TIMES, CHANNELS // 2)),
    }[name]
    torch.manual_seed(0)
    ours = nn.Sequential(*(block(made) for _ in range(LAYERS))).eval()
    theirs = nn.Sequential(*(block(plain) for _ in range(LAYERS))).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(shape)


def in_torch(ours: nn.Module, theirs: nn.Module, x: torch.Tensor, threads: int) -> dict[str, Any]:
    """Alternating blocks of calls in this process."""
    calls = {"eager": lambda: theirs(x).numpy(), "portolan": lambda: ours(x).numpy()}
    arms = [here(label, call, cpu=False) for label, call in calls.items()]
    error = race(arms, threads, np.random.default_rng(0))
    ms = dict(zip(("plain", "kernels"), (float(np.median(a.ms)) for a in arms), strict=True))
    return {"runtime": "torch", "ms": ms, "as_fast": ratio(*arms), "error": error}


def exports(kernel: Kernel, op: Any, ours: nn.Module, theirs: nn.Module, x: torch.Tensor, folder: Path) -> list[Path]:
    """The ONNX files: with the operator as a function, and as the eager module is."""
    paths = [folder / "body.onnx"]
    onnx.save(to_onnx(ours, (x,), [(kernel, op)]), str(paths[0]))
    if kernel.name != "selective_scan":  # 512 steps, unrolled: a graph of a hundred thousand nodes
        paths.append(folder / "plain.onnx")
        onnx.save(torch.onnx.export(theirs, (x,), dynamo=True, verbose=False).model_proto, str(paths[1]))
    return paths


def in_runtime(name: str, paths: list[Path], kernels: Path, x: np.ndarray, given: argparse.Namespace) -> dict[str, Any]:
    """The exports and the one with the kernel, raced in processes of their own."""
    target, backend = local.detect(), registry.backend(name)
    with tempfile.TemporaryDirectory(prefix="portolan-whole-") as scratch:
        workspace = Workspace(Path(scratch))
        try:
            arms, answers = [], {}
            models = {p.stem: load_model(p) for p in paths}
            fast = replace(models["body"], kernels=kernels, sha256=models["body"].sha256[::-1])
            samples: Samples = read_samples(None, fast, workspace.folder, 0, None, str(paths[0]))
            for label, model in {**models, "kernels": fast}.items():
                recipe = Recipe((), name, {"threads": given.threads})
                made = Builder(workspace, model, target, {name: backend}, samples).compiled(recipe)
                feeds = [{model.signature.inputs[0].name: x}]
                arms.append(Arm(label, partial(Session, made, feeds)))
                session = Session(made, feeds)
                (answers[label],) = session.worker.ask("run", timeout=120.0, tensors=feeds[0]).tensors.values()
                session.close()
            end = time.monotonic() + given.budget
            outcome = raced(arms, baseline="body", starts=10, deadline=end, rng=np.random.default_rng(0))
        finally:
            workspace.close()
    ms = {label: outcome.arms[label].metrics()["latency_p50"].value for label in answers}
    best = min((label for label in ms if label != "kernels"), key=lambda label: ms[label])
    found = outcome.ratio("kernels", best)
    return {
        "runtime": name,
        "ms": ms,
        "against": best,
        "as_fast": (1 / found.ratio, 1 / found.hi, 1 / found.lo),
        "verdict": found.verdict,
        "error": difference(answers["kernels"], answers[best]),
    }


def one(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model."""
    kernel: Kernel = getattr(operators, name)
    op = operator(kernel)
    ours, theirs, x = nets(name, op)
    shapes = {
        "window_attention": [(HEADS, TOKENS, WIDTH // HEADS)] * 3 + [(HEADS, WINDOW)],
        "selective_scan": [(TIMES, CHANNELS)] * 2 + [(CHANNELS, STATES)] + [(TIMES, STATES)] * 2,
    }[name]
    tuned = tuned_for(kernel, sizes(kernel.program, shapes), local.detect(), find())
    rows = [in_torch(ours, theirs, x, given.threads)]
    with tempfile.TemporaryDirectory(prefix="portolan-export-") as folder:
        paths = exports(kernel, op, ours, theirs, x, Path(folder))
        carried = carry(Path(folder) / "kernels", [(kernel.program, library(kernel.program, tuned.schedules, find()))])
        for runtime in ("onnxruntime", "openvino"):
            if registry.backend(runtime).probe(local.detect()).ready:
                rows.append(in_runtime(runtime, paths, carried.path, x.numpy(), given))
    return [{"model": name, "threads": given.threads, **row} for row in rows]


def main() -> int:
    """Runs both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="window_attention,selective_scan")
    parser.add_argument("--budget", type=lambda t: float(t.rstrip("s")), default=60.0, help="of each race")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(given.threads)
    met = True
    for name in given.only.split(","):
        for row in one(name, given):
            low = row["as_fast"][1]
            met &= low > 1 and row["error"] < 1e-3
            times = "  ".join(f"{k} {v:.2f} ms" for k, v in row["ms"].items())
            fast = "{:.2f}x ({:.2f} to {:.2f})".format(*row["as_fast"])
            print(f"{name:17} {row['runtime']:12} {times}  {fast}  error {row['error']:.1e}", flush=True)
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print(f"environment: {json.dumps(environment())}")
    print("faster in every runtime" if met else "not faster in every runtime")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
