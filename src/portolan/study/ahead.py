"""Building ahead: what the search will ask for anyway, in several processes, while nothing is being timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from portolan.core.recipe import Recipe
from portolan.errors import PortolanError
from portolan.search.candidate import Candidate
from portolan.study.builder import Builder

_POLL_SECONDS = 0.2


def build_ahead(
    builder: Builder, live: Sequence[Candidate], jobs: int, over: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Builds the first recipe of each chain of passes on each backend.

    What fails here fails again, with its reason, when the search comes to it. Nothing is timed meanwhile.

    Args:
        builder: what builds.
        live: the candidates, the baseline first.
        jobs: how many processes at once.
        over: asked now and then; true ends the building at once.
        say: told one line.
    """
    recipes = first_recipes(live)
    say(f"building {len(recipes)} recipes ahead in {jobs} processes")
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="build")
    begun: list[Future[object]] = []
    try:
        # Artefacts first, each once: several recipes start from the same one.
        chains = {recipe.chain: recipe.passes for recipe in recipes if recipe.passes}
        begun += [pool.submit(builder.artefact, steps) for steps in chains.values()]
        if _finish(begun, over):
            begun += [pool.submit(builder.compiled, recipe) for recipe in recipes]
            _finish(begun, over)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while wait(begun, 0).not_done:  # one that was just about to start a worker is met the next time round
            builder.stop()
            wait(begun, _POLL_SECONDS)
        pool.shutdown(wait=True)


def first_recipes(live: Iterable[Candidate]) -> list[Recipe]:
    """The first recipe of each chain of passes on each backend: the space lists defaults first."""
    found: dict[tuple[str, str], Recipe] = {}
    for candidate in live:
        found.setdefault((candidate.recipe.chain, candidate.recipe.backend), candidate.recipe)
    return list(found.values())


def _finish(futures: Sequence[Future[object]], over: Callable[[], bool]) -> bool:
    """Waits for all of them; False when time was over before. Bugs go up, failures to build do not."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            error = future.exception()
            if error is not None and not isinstance(error, PortolanError):
                raise error
        if pending and over():
            return False
    return True
