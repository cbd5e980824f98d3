"""The named folders below which everything lies that the studio reads or writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from flowloom.config.local_paths import local_path_error
from flowloom.errors import Problem
from flowloom.server.endpoints import unfit_endpoint
from flowloom.server.problems import NoSuchFile, NoSuchRoot, OutsideRoots
from flowloom.trainers.kohya.arguments import path_in

_AIM = "aim://"
_AN_ADDRESS = re.compile(r"(https?|s3|gs|az)://")
"""What is no file of this machine; a folder's name may hold such marks further on."""
_IN_STORES = frozenset({"image_folder_path", "source_path", "dir"})
"""What may be in a store: images, the source of a data set, the cache."""
_WRITTEN = frozenset({"target_dir", "out_path"})
"""What tasks write to, under names that a client chooses."""
_NAMES_A_PATH = re.compile(
    r"(^|_)(path|dir|folder|file)s?$|^(ae|vae|clip_[lg]|t5xxl|gemma2|network_weights)$"
)


class Roots:
    """Names and folders; what leads out of them, by `..` or by a symbolic link, is refused."""

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = {name: folder.expanduser().absolute() for name, folder in folders.items()}

    def resolve(self, root: str, relative: str) -> Path:
        """The real path of what is at `relative` below `root`.

        Raises:
            NoSuchRoot, NoSuchFile, OutsideRoots: as their names say.
        """
        if root not in self.folders:
            raise NoSuchRoot(root, sorted(self.folders))
        return inside(self.folders[root], relative)

    def holds(self, path: Path) -> bool:
        """Whether the real place of `path` is below one of the folders; it need not exist."""
        try:
            real = path.expanduser().resolve()
        except (OSError, RuntimeError):  # links in a circle, or the home of a user that does not exist
            return False
        return any(real.is_relative_to(folder.resolve()) for folder in self.folders.values())

    def reaches_runs(self, path: Path) -> bool:
        """Whether `path` lies in the folder of runs, or that in it: a file written there can be a run."""
        if "runs" not in self.folders:
            return False
        real, runs = path.expanduser().resolve(), self.folders["runs"].resolve()
        return real.is_relative_to(runs) or runs.is_relative_to(real)

    def named_by(self, config: Any, place: str = "") -> Iterator[Path]:
        """The real paths that a configuration names, but for the folders themselves: all lies in these."""
        if isinstance(config, dict | list):
            for name, value in config.items() if isinstance(config, dict) else enumerate(config):
                yield from self.named_by(value, f"{place}.{name}")
        elif _can_be_written(config) and (named := _path_in(place, config)) and _can_be_there(named):
            try:
                path = Path(named).expanduser().resolve()
            except (OSError, RuntimeError):
                return
            if path not in {folder.resolve() for folder in self.folders.values()}:
                yield path

    def strays(self, config: Any, place: str = "") -> Iterator[Problem]:
        """The paths in a configuration that lead out of the folders, and texts that cannot be written."""
        if isinstance(config, dict | list):
            pairs = config.items() if isinstance(config, dict) else enumerate(config)
            for name, value in pairs:
                if not _can_be_written(name):
                    yield Problem(place, f"{name!r} is no text.")
                else:
                    yield from self.strays(value, f"{place}.{name}".lstrip("."))
        elif message := self._trouble(place, config):
            yield Problem(place, message)

    def _trouble(self, place: str, value: Any) -> str:
        """What is wrong with one value of a configuration; nothing where it may be."""
        if not _can_be_written(value):
            return f"{value!r} is no text: a half of a surrogate pair is in it."
        if server := _server_in(place, value):
            return unfit_endpoint(server)
        if _must_be_local(place, value) and (elsewhere := local_path_error(value)):
            return elsewhere
        path = _path_in(place, value)
        if not path:
            return ""
        if not _can_be_there(path):
            return f"{path[:100]!r} is no path: too long, with a zero in it, or of nobody's home."
        if not self.holds(Path(path)):
            names = ", ".join(f"{name} ({folder})" for name, folder in self.folders.items())
            return f"{path!r} is outside of the studio's folders: {names}. Start it with --root NAME=DIR."
        if place in _WRITTEN and self.reaches_runs(Path(path)):
            return f"{path!r} reaches into the folder of runs: these are the studio's to make."
        return ""


def _can_be_written(value: Any) -> bool:
    """Whether a text can be, which JSON does not promise; all else can."""
    try:
        return not isinstance(value, str) or bool(value.encode()) or value == ""
    except UnicodeEncodeError:
        return False


def _can_be_there(path: str) -> bool:
    """Whether the system can be asked for a path at all."""
    try:
        Path(path).expanduser()
    except RuntimeError:  # somebody's home, and there is nobody of that name
        return False
    parts = path.encode().split(b"/")
    return "\0" not in path and max(map(len, parts)) <= 255 and sum(map(len, parts)) + len(parts) <= 4000


def _must_be_local(place: str, value: Any) -> bool:
    name = next((word for word in reversed(place.split(".")) if not word.isdecimal()), "")
    return isinstance(value, str) and bool(_NAMES_A_PATH.search(name)) and name not in _IN_STORES


def _server_in(place: str, value: Any) -> str:
    """The address of the server that `value`, at `place`, makes us connect to; empty where it is none."""
    if not isinstance(value, str):
        return ""
    if place.endswith("storage.endpoint"):
        return value
    is_aims = _is_of_aim(place) and value.startswith(_AIM)
    return f"http://{value.removeprefix(_AIM)}" if is_aims else ""


def _is_of_aim(place: str) -> bool:
    words = [word for word in place.split(".") if not word.isdecimal()]
    return words[-1:] == ["aim_path"] or words[-2:] == ["loggers", "repo"]


def _path_in(place: str, value: Any) -> str:
    """The path that `value`, found at `place` in a configuration, is or names; empty where it does not."""
    words = [word for word in place.split(".") if not word.isdecimal()]
    if not isinstance(value, str) or not words:
        return ""
    if words[-1] == "network_args":
        return path_in(value)
    if _is_of_aim(place):
        # Aim takes everything for a folder but the address of its own server.
        return "" if value.startswith(_AIM) else value
    is_path = _NAMES_A_PATH.search(words[-1]) and not _AN_ADDRESS.match(value)
    return value if is_path else ""


def inside(folder: Path, relative: str) -> Path:
    """The real path of `folder / relative`, which is there and below `folder`.

    Raises:
        NoSuchFile: nothing is there.
        OutsideRoots: it leads out of `folder`.
    """
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts or "\0" in relative or "\\" in relative:
        raise OutsideRoots(relative)
    try:
        real = (folder / parts).resolve(strict=True)
    except (OSError, RuntimeError):
        raise NoSuchFile(relative) from None
    if not real.is_relative_to(folder.resolve()):
        raise OutsideRoots(relative)
    return real
