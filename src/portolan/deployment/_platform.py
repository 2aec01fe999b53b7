"""What a platform is: something that turns the facts of a bundle into the files that run it there."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from portolan.deployment._facts import Facts


@dataclass(frozen=True)
class Emitted:
    """The files of one platform.

    Attributes:
        texts: contents by file name, relative to the platform's folder.
        bundle: the folder that gets the whole bundle, or None.
        model: the folder that gets the model's own files, unpacked, or None.
        next: the commands to type next, run from where the user is; `{folder}` stands for the platform's folder.
        notes: what the reader has to know beside the files.
    """

    texts: Mapping[str, str]
    bundle: str | None = None
    model: str | None = None
    next: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)


class Platform(abc.ABC):
    """Base of all platforms. A plug-in is an object of such a class, named by an entry point of `portolan.platforms`.

    Attributes:
        name: as `--to` takes it.
        about: one line for people.
    """

    name: str
    about: str

    @abc.abstractmethod
    def emit(self, facts: Facts) -> Emitted:
        """The files for this bundle. Nothing is written here, and nothing of the bundle is run.

        Raises:
            NoBackend: the platform cannot run it, with what can.
            UsageError: a choice that does not fit the platform.
        """
