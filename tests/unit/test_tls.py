"""TLS and mutual TLS: through the gRPC door with its client, and as a context for sockets."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
import trustme

from portolan.errors import UsageError
from portolan.serving import tls
from portolan.serving.grpc_ import Door, Settings
from portolan.serving.guard import Guard
from portolan.serving.journal import Journal

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.doors import FakeModels, LoopThread


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two authorities; the server's and a client's certificate by the first, a stranger's by the second."""
    folder = tmp_path_factory.mktemp("tls")
    ours, others = trustme.CA(), trustme.CA()
    found = {"ca": folder / "ca.pem"}
    ours.cert_pem.write_to_path(str(found["ca"]))
    for name, authority in (("server", ours), ("client", ours), ("stranger", others)):
        issued = authority.issue_cert("localhost", "127.0.0.1")
        found[name], found[f"{name}.key"] = folder / f"{name}.pem", folder / f"{name}.key"
        found[name].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(found[f"{name}.key"]))
    return found


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[tls.Tls], int]]:
    loop, doors = LoopThread(), []
    journal = Journal(tmp_path / "log")

    def go(how: tls.Tls) -> int:
        async def start() -> int:
            doors.append(Door(FakeModels(), Settings(port=0, tls=how), Guard(), journal))
            return await doors[-1].start()

        return loop.run(start())

    yield go
    for door in doors:
        loop.run(door.stop(0))
    loop.close()
    journal.close()


def live(port: int, files: dict[str, Path], who: str | None, *, secure: bool = True) -> bool:
    certificates: dict[str, Any] = {}
    if secure:
        certificates = {"ssl": True, "root_certificates": str(files["ca"])}
    if who is not None:
        certificates |= {"certificate_chain": str(files[who]), "private_key": str(files[f"{who}.key"])}
    with triton.InferenceServerClient(f"localhost:{port}", **certificates) as client:
        try:
            return bool(client.is_server_live(client_timeout=5))
        except triton.InferenceServerException:
            return False


def test_a_server_with_a_certificate_speaks_tls_only(files: dict[str, Path], serve: Callable[[tls.Tls], int]) -> None:
    port = serve(tls.Tls(files["server"], files["server.key"]))
    assert live(port, files, None)
    assert not live(port, files, None, secure=False)


def test_mutual_tls_lets_in_only_whom_the_authority_signed(
    files: dict[str, Path], serve: Callable[[tls.Tls], int]
) -> None:
    port = serve(tls.Tls(files["server"], files["server.key"], files["ca"]))
    assert live(port, files, "client")
    assert not live(port, files, "stranger")
    assert not live(port, files, None)


def test_a_context_for_sockets_asks_for_a_certificate_where_it_should(files: dict[str, Path]) -> None:
    plain = tls.Tls(files["server"], files["server.key"])
    assert plain.context().verify_mode is ssl.CERT_NONE
    mutual = replace(plain, client_ca=files["ca"]).context()
    assert mutual.verify_mode is ssl.CERT_REQUIRED
    assert mutual.minimum_version is ssl.TLSVersion.TLSv1_2


def test_files_that_do_not_fit_are_said(files: dict[str, Path], tmp_path: Path) -> None:
    wrong = {
        "are no certificate and its key: key values mismatch": tls.Tls(files["server"], files["client.key"]),
        "No such file": tls.Tls(tmp_path / "none", files["server.key"]),
        "holds no certificates": tls.Tls(files["server"], files["server.key"], files["client.key"]),
    }
    for said, how in wrong.items():
        with pytest.raises(UsageError, match=said) as error:
            how.context()
        assert error.value.hint
        with pytest.raises(UsageError, match=said):
            how.credentials()


def test_flags_that_belong_together() -> None:
    assert tls.of(None, None, None) is None
    assert tls.of("a", "b", "c") == tls.Tls(Path("a"), Path("b"), Path("c"))
    for given, said in {
        ("a", None, None): "--tls-cert needs --tls-key",
        (None, "b", None): "--tls-key needs --tls-cert",
        (None, None, "c"): "--tls-client-ca needs --tls-cert",
        ("a", None, "c"): "--tls-cert needs --tls-key",
    }.items():
        with pytest.raises(UsageError, match=said):
            tls.of(*given)
