"""The command that serves a bundle, as container platforms start it."""

from __future__ import annotations

from collections.abc import Sequence

from portolan.deployment._facts import Facts

#: What every process of a container sees, and nothing but the platform's network reaches.
_EVERYWHERE = "0.0.0.0"


def arguments(facts: Facts, bundle: str, *, port: int, grpc: int | None, replicas: tuple[int, int]) -> Sequence[str]:
    """The words after `portolan`.

    Args:
        facts: of the bundle.
        bundle: where it lies in the container.
        port: of HTTP.
        grpc: port of gRPC, or None for none.
        replicas: fewest and most processes in this container.
    """
    few, many = replicas
    words = ["serve", bundle, "--host", _EVERYWHERE, "--port", str(port)]
    if grpc is not None:
        words += ["--grpc-port", str(grpc)]
    words += ["--replicas", f"{few}..{many}"]
    # Compiled code runs only for who says so; whoever deploys the bundle does.
    return [*words, "--native"] if facts.bundle.code else words
