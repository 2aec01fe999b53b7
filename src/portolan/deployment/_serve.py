"""The command that serves a bundle, as container platforms start it."""

from __future__ import annotations

from collections.abc import Sequence

from portolan.deployment import _sizing as sizing
from portolan.deployment._facts import Facts

#: What every process of a container sees, and nothing but the platform's network reaches.
_EVERYWHERE = "0.0.0.0"


#: Seconds that the server has less than the platform gives it: it is to end by itself.
_SOONER = 5


def arguments(
    facts: Facts, bundle: str, *, port: int, grpc: int | None, replicas: tuple[int, int], drain: int = 0
) -> Sequence[str]:
    """The words after `portolan`.

    Args:
        facts: of the bundle.
        bundle: where it lies in the container.
        port: of HTTP.
        grpc: port of gRPC, or None for none.
        replicas: fewest and most processes in this container.
        drain: seconds to stay up after readiness ends, for balancers to notice.
    """
    few, many = replicas
    words = ["serve", bundle, "--host", _EVERYWHERE, "--port", str(port)]
    if grpc is not None:
        words += ["--grpc-port", str(grpc)]
    words += ["--replicas", f"{few}..{many}"]
    words += ["--grace", f"{(sizing.grace(facts).value or 0) - _SOONER}s"]
    if drain:
        words += ["--drain", f"{drain}s"]
    # Compiled code runs only for who says so; whoever deploys the bundle does.
    return [*words, "--native"] if facts.bundle.code else words
