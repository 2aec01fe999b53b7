"""Who may come in, and how much of it: bearer tokens, requests per second, requests at once. For both doors.

Tokens lie in a file, one per line; it is read again when it changes, so that a token is replaced without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path

from portolan.errors import UsageError
from portolan.serving.calls import Refusal

Clock = Callable[[], float]
#: A token shorter than this can be guessed: 16 characters of base64 are 96 bits.
SHORTEST = 16
_LOOK_AGAIN = 1.0
_MOST_CLIENTS = 10_000


class Tokens:
    """The tokens of a file: one per line; empty lines and lines that start with `#` say nothing.

    While the file cannot be read the tokens read last stay; a file without tokens lets nobody in.

    Args:
        path: of the file.
        clock: seconds; the file is looked at once a second at most.
        warn: told when the file cannot be read any more.

    Raises:
        UsageError: it cannot be read, or holds no token, or one that is too short.
    """

    def __init__(self, path: Path, *, clock: Clock = time.monotonic, warn: Callable[[str], None] | None = None) -> None:
        self._path, self._clock, self._warn = path, clock, warn or (lambda _: None)
        self._stamp = self._stamped()
        self._digests = _read(path)
        if not self._digests:
            raise UsageError(f"`{path}` holds no token", hint="write one per line: openssl rand -hex 32")
        self._next = clock() + _LOOK_AGAIN

    def holder(self, token: str) -> int | None:
        """Which token of the file it is, found in a time that does not depend on how much of it is right."""
        self._refresh()
        digest, found = hashlib.sha256(token.encode(errors="surrogateescape")).digest(), None
        for i, known in enumerate(self._digests):  # to the end, also when it is found
            if hmac.compare_digest(digest, known):
                found = i
        return found

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _LOOK_AGAIN
        try:
            stamp = self._stamped()
            if stamp != self._stamp:
                self._digests = _read(self._path)
                self._stamp = stamp
        except UsageError as error:
            self._warn(f"{error.message}; the tokens read before stay valid")

    def _stamped(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise _unreadable(self._path, error) from error
        return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> list[bytes]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    digests = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        if len(line) < SHORTEST:
            problem = f"a token of `{path}` has {len(line)} characters: it can be guessed"
            hint = "make one with openssl rand -hex 32"
            raise UsageError(problem, hint=hint, where=f"{path}:{number}")
        digests.append(hashlib.sha256(line.encode()).digest())
    return digests


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> UsageError:
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
    return UsageError(f"the tokens in `{path}` cannot be read: {reason}", hint="--token-file names a file of tokens")


class Guard:
    """Lets requests in or refuses them.

    Args:
        tokens: who may come in; None for everyone.
        rate: requests per second of one client, with one second's worth at once; None for any number. A client is
            whoever holds a token, or without tokens an address.
        concurrent: requests at once of all clients; None for any number.
        clock: seconds.
    """

    def __init__(
        self,
        tokens: Tokens | None = None,
        *,
        rate: float | None = None,
        concurrent: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.tokens, self.rate, self.concurrent = tokens, rate, concurrent
        self.inside = 0
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    def check(self, authorization: str | None) -> str | None:
        """Whose the token in an `authorization` header is; None where everyone may come in.

        Raises:
            Refusal: `unauthenticated`.
        """
        if self.tokens is None:
            return None
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal("unauthenticated", "this server wants a token: `Authorization: Bearer TOKEN`")
        holder = self.tokens.holder(token.strip())
        if holder is None:
            raise Refusal("unauthenticated", "the token is not one of this server's")
        return f"token {holder}"

    def enter(self, authorization: str | None, client: str) -> None:
        """Lets a request in; `leave` once it is answered.

        Args:
            authorization: the header of that name.
            client: the address it comes from, without port.

        Raises:
            Refusal: `unauthenticated`, `too_many`, or `overloaded` when all that may be inside are.
        """
        holder = self.check(authorization)
        if self.concurrent is not None and self.inside >= self.concurrent:
            raise Refusal("overloaded", f"{self.inside} requests are being answered, which is the limit", 1.0)
        if self.rate is not None:
            self._take(holder or client, self.rate)
        self.inside += 1

    def leave(self) -> None:
        """A request that came in is answered."""
        self.inside -= 1

    def _take(self, client: str, rate: float) -> None:
        """Takes one from the client's bucket, which fills at `rate` and holds one second's worth, but at least one."""
        now, full = self._clock(), max(rate, 1.0)
        level, at = self._levels.get(client, (full, now))
        level = min(full, level + (now - at) * rate)
        if level < 1:
            self._levels[client] = level, now
            raise Refusal("too_many", f"more than {rate:g} requests per second", (1 - level) / rate)
        self._levels[client] = level - 1, now
        if len(self._levels) > _MOST_CLIENTS:
            self._forget(now, rate, full)

    def _forget(self, now: float, rate: float, full: float) -> None:
        """Drops buckets that are full again by now, else the oldest half: memory stays bounded whoever knocks."""
        kept = {c: (level, at) for c, (level, at) in self._levels.items() if level + (now - at) * rate < full}
        if len(kept) > _MOST_CLIENTS // 2:
            newest = sorted(kept.items(), key=lambda item: item[1][1])[-_MOST_CLIENTS // 2 :]
            kept = dict(newest)
        self._levels = kept
