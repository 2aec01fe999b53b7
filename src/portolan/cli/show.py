"""What each command says to people, made from its JSON object alone."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from portolan.cli.console import Answer, Line
from portolan.cli.table import columns, number, plain, quantity
from portolan.core.plain import call_text

Json = Mapping[str, Any]
#: Features that backends and passes ask for; the rest is shown with `-v`.
TELLING = frozenset(
    {
        *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16"),
        *("sve", "sve2", "svei8mm", "svebf16", "sme", "sme2", "v"),
    }
)


def inspection(data: Json, model: str) -> Answer:
    """The answer of `inspect`: `data` is its object, `model` what the user typed."""
    operators = sorted(data["operators"].items(), key=lambda item: (-item[1], item[0]))
    rows = [["format", f"{data['format']}, opset {data['opset']}, sha256 {data['sha256'][:12]}"]]
    for side in ("inputs", "outputs"):
        for i, spec in enumerate(data[side]):
            shape = "x".join(map(str, spec["shape"])) or "scalar"
            rows.append([side if i == 0 else "", f"{spec['name']}:{shape} {spec['dtype']}"])
    listed = textwrap.wrap(", ".join(f"{name} {count:,}" for name, count in operators), 96) or ["none"]
    rows += [["operators" if i == 0 else "", text] for i, text in enumerate(listed)]
    for i, row in enumerate(data.get("backends", ())):
        said = "takes it" if row["takes"] else f"does not: {row['reason']}"
        rows.append([f"on {data['target']['id']}" if i == 0 else "", f"{row['name']} {said}"])
    total = sum(count for _, count in operators)
    # A count of FLOPs follows from the shapes; the bytes assume that each tensor crosses the memory once.
    moved = data["bytes_moved"]
    verdict = (
        f"{data['name']}: {total:,} operators, {quantity(data['parameters'], '')} parameters, "
        f"{quantity(data['flops'], 'FLOP')} and {'~' if moved is not None else ''}{quantity(moved, 'B')} "
        "moved per inference"
    )
    return Answer(
        plain(columns(rows)), verdict, next=[f"portolan optimize {shlex.quote(model)}"], notes=data.get("notes", ())
    )


def examination(data: Json, *, verbose: bool = False) -> Answer:
    """The answer of `doctor`."""
    found = data["target"]
    features = [f for f in found["features"] if verbose or f in TELLING]
    caches = ", ".join(f"{k} {quantity(v, 'B')}" for k, v in found.get("caches", {}).items())
    facts = [
        ["target", f"{found['id']}: {found.get('display') or found['arch']}"],
        ["", f"{found['kind']}, {found['arch']}, {_count(found['cores'], 'core')}, {quantity(found['ram'], 'B')} RAM"],
        ["caches", caches or "unknown"],
        ["features", ""],
        *_devices(found),
        ["fingerprint", found["fingerprint"]],
    ]
    wrapped = textwrap.wrap(" ".join(features), 96) or ["none that a backend asks for"]
    facts[3:4] = [["features" if i == 0 else "", text] for i, text in enumerate(wrapped)]
    ready = [b for b in data["backends"] if b["ready"]]
    rows = [["backend", "ready", "version", ""]]
    rows += [_backend_row(b) for b in data["backends"]]
    passes = [["pass", "needs", ""]]
    passes += [[p["name"], p["needs"] or "-", p["about"] or p["reason"] or ""] for p in data["passes"]]
    lines = [*plain(columns(facts)), Line(""), *plain(columns(rows))]
    if len(passes) > 1:
        lines += [Line(""), *plain(columns(passes))]
    if "ceilings" in data:
        lines += [Line(""), *plain(columns(_ceilings(data["ceilings"])))]
    if data.get("payoffs"):
        lines += [Line(""), *plain(columns(_payoffs(data["payoffs"])))]
    fixes = [b["fix"] for b in data["backends"] if not b["ready"] and b["fix"]]
    total = _count(len(data["backends"]), "backend")
    verdict = f"{len(ready)} of {total} ready" if ready else f"no backend is ready ({total} known)"
    again = "portolan optimize demo:digits" if found["id"] == "local" else f"portolan bench MODEL -t {found['id']}"
    return Answer(lines, verdict, next=fixes[:1] or [again], code=0 if ready else 4)


def _devices(target: Json) -> list[list[str]]:
    told = [_device(device) for device in target.get("devices", ())] or list(target["accelerators"])
    return [["devices" if i == 0 else "", text] for i, text in enumerate(told or ["no accelerator found"])]


def _device(device: Json) -> str:
    driver = f", driver {device['driver']}" if device["driver"] else ""
    facts = f"compute capability {device['capability']}{driver}, CUDA {device['runtime']} at most"
    used = "" if device["index"] == 0 else " (backends use the first one)"
    return f"{device['name']}, {quantity(device['memory'], 'B')}, {facts}{used}"


def _on_devices(backend: Json) -> str:
    """Which devices a backend uses besides the processor, and what keeps it from others; empty where there are none."""
    devices = backend.get("devices") or {}
    ready = [name for name, on in devices.items() if on["ready"]]
    reasons: dict[str, list[str]] = {}
    for name, on in devices.items():
        if not on["ready"]:
            why = ": ".join(filter(None, (on["reason"], on["fix"])))
            reasons.setdefault(why, []).append(name)
    told = [f"also on {', '.join(ready)}"] if ready else []
    told += [f"not on {', '.join(names)}: {why}" for why, names in reasons.items()]
    return "; ".join(told)


def _backend_row(backend: Json) -> list[str]:
    why = backend["reason"] or ""
    if backend["fix"] and not backend["ready"]:
        why = f"{why}: {backend['fix']}" if why else backend["fix"]
    own = backend.get("environment")
    if backend["ready"] and own is not None and own["size"] is not None:
        why = f"an environment of its own, {quantity(own['size'], 'B')}"
    if backend["ready"] and (devices := _on_devices(backend)):
        why = f"{why}; {devices}" if why else devices
    return [backend["name"], "yes" if backend["ready"] else "no", backend["version"] or "-", why]


def _ceilings(ceilings: Json) -> list[list[str]]:
    units = {"bandwidth": "B/s"}
    rows = [["ceiling", ""]]
    for name, value in ceilings.items():
        if isinstance(value, Mapping):
            rows.append([name, number(value, n=True)])
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            unit = units.get(name, "OP/s" if "int" in name else "FLOP/s" if name.startswith("flops") else "")
            rows.append([name, quantity(value, unit)])
        elif value is None:
            rows.append([name, "not measured"])
    return rows


def _payoffs(payoffs: Sequence[Json]) -> list[list[str]]:
    """What each pass brings, the most first; the operators and backends side by side."""
    places = list(dict.fromkeys((p["operators"], p["backend"]) for p in payoffs))
    found = {(p["passes"], p["operators"], p["backend"]): p for p in payoffs}
    passes = list(dict.fromkeys(p["passes"] for p in payoffs))
    passes.sort(key=lambda name: -max(p["ratio"] or 0.0 for p in payoffs if p["passes"] == name))
    cells = [[_payoff(found.get((name, *place))) for place in places] for name in passes]
    return [
        ["times as fast", *(f"{o} {b}" for o, b in places)],
        *([n, *row] for n, row in zip(passes, cells, strict=True)),
    ]


def _payoff(payoff: Json | None) -> str:
    if payoff is None:
        return "-"
    if payoff["ratio"] is None:
        return "failed"
    return f"{payoff['ratio']:.2f} ({payoff['lo']:.2f} to {payoff['hi']:.2f})"


def compression(data: Json, model: str, *, dry_run: bool = False) -> Answer:
    """The answer of `compress`."""
    steps = [step_text(step) for step in data["recipe"]["passes"]]
    rows = [["passes", " + ".join(steps) or "-"]]
    rows += [[name.replace("_", " "), number(metric, n=True)] for name, metric in data.get("metrics", {}).items()]
    if dry_run:
        return Answer(plain(columns(rows)), f"would write `{data['model']}`; nothing was written")
    path = str(data["model"])
    again = f"portolan bench {shlex.quote(model)} {shlex.quote(path)}"
    size = data.get("metrics", {}).get("size")
    verdict = f"wrote `{path}`" + (f", {number(size)}" if size else "")
    return Answer(plain(columns(rows)), verdict, next=[again], notes=data.get("notes", ()))


def step_text(step: Json) -> str:
    """A pass of a recipe as people write it: `quantize(bits=8)`."""
    return call_text(str(step["name"]), {key: value for key, value in step.items() if key != "name"})


def options_text(name: str, options: Json) -> str:
    """A backend with its options: `openvino(precision=bf16)`."""
    return call_text(name, options)


def written(path: str, *, what: str, dry_run: bool = False, next: Sequence[str] = ()) -> Answer:
    """The answer of `report`: which file was or would be written."""
    if dry_run:
        return Answer((), f"would write the {what} `{path}`; nothing was written")
    return Answer((), f"wrote the {what} `{path}`", next=next)


def packing(data: Json, *, dry_run: bool = False, check: bool = False) -> Answer:
    """The answer of `pack` and of `pack --check`."""
    bundle, files = str(data["bundle"]), data["files"]
    names = [f["path"] if isinstance(f, Mapping) else str(f) for f in files]
    lines = plain([f"  {name}" for name in names])
    if dry_run:
        return Answer(
            lines, f"would write the bundle `{bundle}` with {_count(len(names), 'file')}; nothing was written"
        )
    digest = f"sha256 {str(data['sha256'])[:12]}" if data.get("sha256") else "no checksum"
    facts = f"{_count(len(names), 'file')}, {digest}"
    if not data["verified"]:
        return Answer(lines, f"not verified: `{bundle}` ({facts})", code=6)
    verb = "agrees with what it promises" if check else "wrote and verified"
    verdict = f"`{bundle}` {verb} ({facts})" if check else f"{verb} `{bundle}` ({facts})"
    again = [] if check else [f"portolan pack --check {shlex.quote(bundle)}"]
    return Answer(lines, verdict, next=again, notes=data.get("notes", ()))


def deployment(data: Json, *, dry_run: bool = False) -> Answer:
    """The answer of `deploy`."""
    lines: list[Line] = []
    for platform in data["platforms"]:
        lines += plain([f"{platform['folder']}/", *(f"  {name}" for name in _folded(platform["files"]))])
    total = _count(sum(len(p["files"]) for p in data["platforms"]), "file")
    names = ", ".join(p["name"] for p in data["platforms"])
    notes = list(dict.fromkeys(note for p in data["platforms"] for note in p["notes"]))
    if dry_run:
        return Answer(lines, f"would write {total} for {names}; nothing was written", notes=notes)
    first = data["platforms"][0]["next"]
    return Answer(lines, f"wrote {total} for {names}", next=first[:1], notes=notes)


def _folded(files: Sequence[str], most: int = 8) -> list[str]:
    """File names, those of a large folder as one line."""
    folders: dict[str, list[str]] = {}
    for name in files:
        folders.setdefault(name.rpartition("/")[0].partition("/")[0], []).append(name)
    return [
        line
        for folder, names in folders.items()
        for line in (names if not folder or len(names) <= most else [f"{folder}/ ({_count(len(names), 'file')})"])
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
