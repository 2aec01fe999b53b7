"""TLS for both doors, and mutual TLS where a client's certificate is asked for."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.errors import UsageError

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True)
class Tls:
    """PEM files: the server's certificate chain and key, and who signs the clients' certificates.

    Attributes:
        cert: the chain, the server's own certificate first.
        key: its private key, without a password.
        client_ca: certificates of authorities; with them, clients must show a certificate that one of them signed.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For sockets: TLS 1.2 or newer.

        Raises:
            UsageError: a file that cannot be read or does not hold what it should.
        """
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.set_alpn_protocols(["http/1.1"])
        try:
            # Without this OpenSSL asks for the password of an encrypted key on the terminal, and waits.
            made.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            problem = f"`{self.cert}` and `{self.key}` are no certificate and its key: {_why(error)}"
            raise UsageError(
                problem, hint="--tls-cert and --tls-key name PEM files; the key has no password"
            ) from error
        if self.client_ca is not None:
            made.verify_mode = ssl.CERT_REQUIRED
            try:
                made.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                problem = f"`{self.client_ca}` holds no certificates: {_why(error)}"
                raise UsageError(problem, hint="--tls-client-ca names a PEM file of authorities") from error
        return made

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC.

        Raises:
            UsageError: as `context` does, since gRPC would only log it.
        """
        import grpc

        self.context()
        clients = None if self.client_ca is None else self.client_ca.read_bytes()
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=clients,
            require_client_auth=clients is not None,
        )


def of(cert: str | Path | None, key: str | Path | None, client_ca: str | Path | None) -> Tls | None:
    """From the flags; None without any.

    Raises:
        UsageError: only some of those that belong together.
    """
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        missing = "--tls-cert" if cert is None else "--tls-key"
        given = "--tls-key" if key else "--tls-cert" if cert else "--tls-client-ca"
        raise UsageError(f"{given} needs {missing}", hint="give --tls-cert and --tls-key")
    return Tls(Path(cert), Path(key), None if client_ca is None else Path(client_ca))


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no certificate in PEM").lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)
