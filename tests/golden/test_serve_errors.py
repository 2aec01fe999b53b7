"""What `serve` says of doors that cannot be opened as asked: text, place, hint and exit code, word for word.

After a wanted change: `UPDATE_GOLDEN=1 pytest tests/golden/test_serve_errors.py`, and read the diff.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from portolan import hosting
from portolan.errors import PortolanError
from portolan.serving.surroundings import Asked
from support.serving import identity, pack

GOLDEN = Path(__file__).with_name("serve_errors.txt")
BUNDLES = Path(__file__).with_name("serve_bundle_errors.txt")


def certificate(folder: Path, name: str) -> None:
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("server", "other"):
        certificate(tmp_path, name)
    (tmp_path / "empty").write_text("# nobody\n")
    (tmp_path / "short").write_text("# the shop\nhunter2\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    return tmp_path


CASES: dict[str, Asked] = {
    "a file of tokens that is not there": Asked(token_file="tokens"),
    "a file of tokens without one": Asked(token_file="empty"),
    "a token that can be guessed": Asked(token_file="short"),
    "a file of tokens that is no text": Asked(token_file="binary"),
    "a certificate without its key": Asked(tls_cert="server.pem"),
    "a key without its certificate": Asked(tls_key="server.key"),
    "an authority without a certificate": Asked(tls_client_ca="ca.pem"),
    "a certificate that is not there": Asked(tls_cert="gone.pem", tls_key="server.key"),
    "another certificate's key": Asked(tls_cert="server.pem", tls_key="other.key"),
    "a key where a certificate should be": Asked(tls_cert="server.key", tls_key="server.key"),
    "an authority that is none": Asked(tls_cert="server.pem", tls_key="server.key", tls_client_ca="empty"),
    "a collector that is no address": Asked(otlp_endpoint="localhost:4317"),
    "a log in a folder that is not there": Asked(log_file="logs/serve.jsonl"),
}


def said(check: Callable[[], object]) -> str:
    with pytest.raises(PortolanError) as error:
        check()
    lines = [f"exit {error.value.exit_code}: {error.value.message}"]
    lines += [f"  at {error.value.where}"] if error.value.where else []
    lines += [f"  hint: {error.value.hint}"]
    return "\n".join(lines)


def test_every_error_is_said_as_it_was(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [f"{name}\n{said(asked.check)}\n" for name, asked in CASES.items()]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found.append(f"without grpcio\n{said(Asked(grpc_port=0).check)}\n")
    found.append(f"without opentelemetry\n{said(Asked(otlp_endpoint='http://c').check)}\n")
    text = "\n".join(found)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_what_is_wrong_with_bundles_and_addresses_is_said_as_it_was(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.portolan", "b.portolan"):
        pack(identity(place / "same.onnx"), place / name)
    (place / "torn.portolan").write_bytes((place / "a.portolan").read_bytes()[:-40])

    def serve(*bundles: str, **keywords: Any) -> Callable[[], object]:
        usual = dict.fromkeys(("replicas", "max_batch", "deadline", "hang_after", "control"))
        asked = {"host": "127.0.0.1", "port": 0, "drain": 0.0, "grace": 1.0, "native": False, **usual, **keywords}
        return lambda: hosting.serve([*bundles], lambda data: None, **asked)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            "two bundles of one name": serve("a.portolan", "b.portolan"),
            "no such bundle": serve("c.portolan"),
            "a bundle that is torn": serve("torn.portolan"),
            "a port that is taken": serve("a.portolan", port=port),
            "an address of another machine": serve("a.portolan", host="203.0.113.7"),
        }
        found = [f"{name}\n{said(check)}\n".replace(str(port), "PORT") for name, check in cases.items()]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found.append(f"without the extra\n{said(serve('a.portolan'))}\n")
    text = "\n".join(found)
    if os.environ.get("UPDATE_GOLDEN"):
        BUNDLES.write_text(text)
    assert text == BUNDLES.read_text()


def test_what_can_be_had_is_not_refused(place: Path) -> None:
    (place / "tokens").write_text("0123456789abcdef0123\n")
    Asked(
        grpc_port=0,
        token_file="tokens",
        tls_cert="server.pem",
        tls_key="server.key",
        tls_client_ca="other.pem",
        log_file="serve.jsonl",
        otlp_endpoint="https://collector.example:4318/custom",
    ).check()
