"""Packages of Debian's for any processor, fetched by apt into a private folder: no root rights, nothing installed.

apt checks the signature of the archive; the hash in the pin is checked on top. A file that is there already and has the
right hash is not fetched again, so an interrupted command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from portolan.core.files import sha256
from portolan.emulation.commands import need, run
from portolan.emulation.kinds import SUITE, Pin, megabytes
from portolan.errors import NoBackend

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_HINT = "check the network and repeat the command: what was fetched is kept"
#: Packages asked for in one command, so that progress shows.
_AT_ONCE = 12
Say = Callable[[str], None]


class Debian:
    """Debian's archive for one processor.

    Args:
        folder: for lists and files; what is in it may be used again.
        arch: Debian's name of the processor, such as `arm64`.
        mirror: where the archive is.
        latest: take the archive's versions in place of the pinned ones.
        say: told what is going on.
    """

    def __init__(self, folder: Path, arch: str, mirror: str, *, latest: bool, say: Say) -> None:
        self.folder, self.arch, self.mirror, self.latest, self._say = folder / arch, arch, mirror, latest, say
        self._updated = False

    def fetch(self, packages: Sequence[Pin]) -> list[Path]:
        """The files of the packages, in their order.

        Raises:
            NoBackend: apt is missing, the archive cannot be reached, or no longer has a version.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {pin: path for pin in packages if (path := self._here(pin))}
        missing = [pin for pin in packages if pin not in found]
        if missing:
            count = f"{len(missing)} package{'' if len(missing) == 1 else 's'}"
            self._say(f"fetching {count} of Debian {SUITE} for {self.arch}, {megabytes(missing)}")
        for start in range(0, len(missing), _AT_ONCE):
            part = missing[start : start + _AT_ONCE]
            self._download(part)
            for pin in part:
                path = self._here(pin)
                if path is None:
                    raise NoBackend(
                        f"`{pin.name}` {pin.version} came with another hash than the pinned one", hint=_HINT
                    )
                found[pin] = path
        return [found[pin] for pin in packages]

    def versions(self, packages: Sequence[Pin]) -> dict[str, str]:
        """The version of each fetched package, from the names of the files."""
        files = {pin: self._here(pin) for pin in packages}
        return {pin.name: _version(path) for pin, path in files.items() if path is not None}

    def closure(self, names: Sequence[str]) -> list[str]:
        """The packages that an empty machine needs for `names`, without what is only recommended."""
        self._update()
        argv = [*self._apt(), "install", "--no-install-recommends", "--print-uris", "-qq", *names]
        lines = run(argv, doing="asking for packages", folder=self.folder, hint=_HINT).splitlines()
        return [line.split()[1].split("_")[0] for line in lines if line.startswith("'")]

    def show(self, names: Sequence[str]) -> str:
        """What the archive says of the packages that it has now."""
        self._update()
        cache = [need("apt-cache", "this needs the `apt-cache` of a Debian or Ubuntu machine"), *self._apt()[2:]]
        argv = [*cache, "show", "--no-all-versions", *names]
        return run(argv, doing="asking for packages", folder=self.folder, hint=_HINT)

    def _here(self, pin: Pin) -> Path | None:
        files = sorted(self.folder.glob(f"{pin.name}_*.deb"))
        if self.latest:
            return files[-1] if files else None
        return next((path for path in files if sha256(path) == pin.sha256), None)

    def _download(self, packages: Sequence[Pin]) -> None:
        for pin in packages:
            for old in self.folder.glob(f"{pin.name}_*.deb"):
                old.unlink()
        self._update()
        names = [pin.name if self.latest else f"{pin.name}={pin.version}" for pin in packages]
        try:
            run([*self._apt(), "download", *names], doing="fetching packages", folder=self.folder, hint=_HINT)
        except NoBackend as error:
            if "was not found" in error.message:
                raise NoBackend(
                    f"{error.message}: the archive has moved on", hint="--latest takes the versions that it has now"
                ) from error
            raise

    def _update(self) -> None:
        if self._updated:
            return
        for name in ("lists/partial", "cache/archives/partial", "sources"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_text("")
        if not _KEYRING.is_file():
            raise NoBackend("Debian's keys are missing", hint="apt-get install debian-archive-keyring")
        source = f"Types: deb\nURIs: {self.mirror}\nSuites: {SUITE}\nComponents: main\nSigned-By: {_KEYRING}\n"
        (self.folder / "sources" / "debian.sources").write_text(source)
        run([*self._apt(), "update"], doing="reading the archive's lists", folder=self.folder, hint=_HINT)
        self._updated = True

    def _apt(self) -> list[str]:
        hint = "this needs the `apt-get` of a Debian or Ubuntu machine"
        places = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": self.folder / "sources",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::Lists": self.folder / "lists",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "1",
        }
        return [
            need("apt-get", hint),
            "-q",
            *(word for key, value in places.items() for word in ("-o", f"{key}={value}")),
        ]


def unpack(files: Sequence[Path], root: Path) -> None:
    """Puts the contents of packages into `root`; no script of theirs is run."""
    tool = need("dpkg-deb", "this needs the `dpkg-deb` of a Debian or Ubuntu machine")
    root.mkdir(parents=True, exist_ok=True)
    for path in files:
        run([tool, "-x", str(path), str(root)], doing=f"unpacking {path.name}", folder=root, hint=_HINT)
    # What lies in /lib is in /usr/lib, by links that another package would have made.
    for name in ("bin", "lib"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")


def _version(path: Path) -> str:
    return path.name.split("_")[1].replace("%3a", ":")
