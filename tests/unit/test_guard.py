"""Who may come in: tokens that are replaced while the server runs, rates, and how many at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from portolan.errors import UsageError
from portolan.serving.calls import Refusal
from portolan.serving.guard import Guard, Tokens

FIRST, SECOND = "first-token-0123456789", "second-token-0123456789"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# who: the shop\n{FIRST}\n\n  {SECOND}  \n")
    return path


def kind(guard: Guard, header: str | None, client: str = "a") -> str | None:
    """The word of the refusal, None where the request comes in."""
    try:
        guard.enter(header, client)
    except Refusal as refusal:
        return refusal.kind
    return None


def test_each_token_of_the_file_opens_and_nothing_else_does(file: Path) -> None:
    guard = Guard(Tokens(file))
    for header in (f"Bearer {FIRST}", f"bearer {SECOND}", f"Bearer  {FIRST} "):
        assert kind(guard, header) is None
    wrong = (None, "", FIRST, "Bearer", "Bearer ", f"Basic {FIRST}", f"Bearer {FIRST}x", "Bearer # who: the shop")
    for header in (*wrong, f"Bearer {FIRST[:-1]}", f"Bearer {FIRST},{SECOND}", "Bearer \udcff"):
        assert kind(guard, header) == "unauthenticated"
    assert guard.inside == 3


def test_the_file_is_read_again_when_it_changes(file: Path) -> None:
    clock = Clock()
    guard = Guard(Tokens(file, clock=clock))
    file.write_text(f"{SECOND}\nthird-token-0123456789\n")
    assert kind(guard, f"Bearer {FIRST}") is None, "it is looked at once a second"
    clock.now += 1.1
    assert kind(guard, f"Bearer {FIRST}") == "unauthenticated"
    assert kind(guard, "Bearer third-token-0123456789") is None


def test_a_file_that_vanishes_keeps_its_tokens_and_one_that_is_emptied_does_not(file: Path) -> None:
    clock, said = Clock(), []
    guard = Guard(Tokens(file, clock=clock, warn=said.append))
    text = file.read_text()
    file.unlink()
    clock.now += 2
    assert kind(guard, f"Bearer {FIRST}") is None
    assert "cannot be read: No such file" in said[0]
    file.write_text(text + "\n# edited\nshort\n")
    clock.now += 2
    assert kind(guard, f"Bearer {FIRST}") is None
    assert "has 5 characters" in said[1]
    file.write_text("# nobody\n")
    clock.now += 2
    assert kind(guard, f"Bearer {FIRST}") == "unauthenticated"


@pytest.mark.parametrize(
    ("text", "said", "where"),
    [
        ("# nobody\n", "holds no token", None),
        ("0123456789abcdef\nsecret\n", "has 6 characters: it can be guessed", ":2"),
        (None, "No such file or directory", None),
        (b"\xff\xfe\n", "not UTF-8", None),
    ],
)
def test_a_file_that_is_no_use_is_said_at_the_start(
    tmp_path: Path, text: str | bytes | None, said: str, where: str | None
) -> None:
    path = tmp_path / "tokens"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=said) as error:
        Tokens(path)
    assert error.value.hint
    assert (error.value.where or "").endswith(where or "")
    assert "secret" not in error.value.message


def test_a_rate_is_kept_per_client_and_says_when_to_come_back() -> None:
    clock = Clock()
    guard = Guard(rate=2, clock=clock)
    assert [kind(guard, None, "a") for _ in range(3)] == [None, None, "too_many"]
    assert kind(guard, None, "b") is None
    with pytest.raises(Refusal) as refused:
        guard.enter(None, "a")
    assert refused.value.retry_after == pytest.approx(0.5)
    clock.now += 0.5
    assert [kind(guard, None, "a") for _ in range(2)] == [None, "too_many"]
    clock.now += 60
    assert [kind(guard, None, "a") for _ in range(3)] == [None, None, "too_many"], "saving up is bounded"


def test_less_than_one_a_second_lets_one_through() -> None:
    clock = Clock()
    guard = Guard(rate=0.1, clock=clock)
    assert [kind(guard, None) for _ in range(2)] == [None, "too_many"]
    clock.now += 10
    assert kind(guard, None) is None


def test_a_holder_of_a_token_is_one_client_wherever_it_comes_from(file: Path) -> None:
    guard = Guard(Tokens(file), rate=1, clock=Clock())
    assert kind(guard, f"Bearer {FIRST}", "a") is None
    assert kind(guard, f"Bearer {FIRST}", "b") == "too_many"
    assert kind(guard, f"Bearer {SECOND}", "b") is None


def test_no_more_than_so_many_at_once() -> None:
    guard = Guard(concurrent=2)
    assert [kind(guard, None) for _ in range(3)] == [None, None, "overloaded"]
    guard.leave()
    assert kind(guard, None) is None


def test_a_crowd_of_clients_does_not_fill_the_memory() -> None:
    clock = Clock()
    guard = Guard(rate=1, clock=clock)
    for i in range(30_000):
        clock.now += 1e-5
        kind(guard, None, str(i))
    assert len(guard._levels) <= 10_000
    assert kind(guard, None, "29999") == "too_many", "whoever came last is still known"
