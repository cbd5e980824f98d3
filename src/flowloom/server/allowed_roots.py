"""The named root folders. The studio reads and writes nothing outside of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from flowloom.config.local_paths import local_path_error
from flowloom.errors import Problem
from flowloom.json_types import is_array, is_object
from flowloom.server.endpoints import endpoint_problem
from flowloom.server.problems import NoSuchFile, NoSuchRoot, OutsideRoots
from flowloom.trainers.kohya.arguments import path_in

_AIM = "aim://"
_ADDRESS = re.compile(r"(https?|s3|gs|az)://")
"""Matches addresses that are not files on this machine."""
_MAY_BE_REMOTE = frozenset(
    {
        *("image_folder_path", "source_path", "data_path", "dir"),
        *("image_dir", "metadata_file", "conditioning_data_dir", "network_weights"),
        *("pretrained_model_name_or_path", "tokenizer_cache_dir"),
        *("ae", "vae", "clip_l", "clip_g", "t5xxl", "gemma2"),
    }
)
"""Keys that may name an object store: images, a dataset, the cache, files of Kohya's runs."""
_OUTPUT_KEYS = frozenset({"target_dir", "out_path"})
"""Keys for task output, whose names a client chooses."""
_NAMES_A_PATH = re.compile(
    r"(^|_)(path|dir|folder|file)s?$|^(ae|vae|clip_[lg]|t5xxl|gemma2|network_weights)$"
)


class AllowedRoots:
    """Root folders by name. Paths that leave them through `..` or a symbolic link are refused."""

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = {name: folder.expanduser().absolute() for name, folder in folders.items()}

    def resolve(self, root: str, relative: str) -> Path:
        """The real path of `relative` in the root called `root`.

        Raises:
            NoSuchRoot, NoSuchFile, OutsideRoots
        """
        if root not in self.folders:
            raise NoSuchRoot(root, sorted(self.folders))
        return inside(self.folders[root], relative)

    def contains(self, path: Path) -> bool:
        """True if the real path of `path`, which need not exist, is in one of the folders."""
        try:
            real = path.expanduser().resolve()
        except (OSError, RuntimeError):  # circular links, or the home of an unknown user
            return False
        return any(real.is_relative_to(folder.resolve()) for folder in self.folders.values())

    def overlaps_runs(self, path: Path) -> bool:
        """True if `path` is in the runs folder or contains it: a file there may be taken for a run."""
        if "runs" not in self.folders:
            return False
        real, runs = path.expanduser().resolve(), self.folders["runs"].resolve()
        return real.is_relative_to(runs) or runs.is_relative_to(real)

    def referenced_paths(self, config: Any, key: str = "") -> Iterator[Path]:
        """Real paths named in a configuration, except the roots themselves, which contain everything."""
        if is_object(config) or is_array(config):
            for name, value in _pairs(config):
                yield from self.referenced_paths(value, f"{key}.{name}")
        elif _is_encodable(config) and (named := _path_in(key, config)) and _is_possible_path(named):
            try:
                path = Path(named).expanduser().resolve()
            except (OSError, RuntimeError):
                return
            if path not in {folder.resolve() for folder in self.folders.values()}:
                yield path

    def path_problems(self, config: Any, key: str = "") -> Iterator[Problem]:
        """Problems of paths in a configuration that leave the roots, and of text that cannot be encoded."""
        if is_object(config) or is_array(config):
            for name, value in _pairs(config):
                if not _is_encodable(name):
                    yield Problem(key, f"{name!r} is not valid Unicode.")
                else:
                    yield from self.path_problems(value, f"{key}.{name}".lstrip("."))
        else:
            message, hint = self._problem(key, config)
            if message:
                yield Problem(key, message, hint=hint)

    def _problem(self, key: str, value: Any) -> tuple[str, str]:
        """The problem of one value of a configuration and its hint; empty if there is none."""
        if not _is_encodable(value):
            return f"{value!r} is not valid Unicode: it contains half of a surrogate pair.", ""
        if server := _server_in(key, value):
            return endpoint_problem(server), ""
        if _must_be_local(key, value) and (problem := local_path_error(value)):
            return problem, ""
        path = _path_in(key, value)
        return self._path_problem(key, path) if path else ("", "")

    def _path_problem(self, key: str, path: str) -> tuple[str, str]:
        if not _is_possible_path(path):
            return (
                f"{path[:100]!r} is not a valid path: too long, a null byte, or an unknown user's home.",
                "",
            )
        if not self.contains(Path(path)):
            names = ", ".join(f"{name} ({folder})" for name, folder in self.folders.items())
            hint = "Choose a path in one of them, or add a folder with flowloom up --root NAME=DIR."
            return f"{path!r} is outside the studio's folders: {names}.", hint
        if key in _OUTPUT_KEYS and self.overlaps_runs(Path(path)):
            message = f"{path!r} overlaps the runs folder, in which only the studio creates files."
            return message, "Choose another folder."
        return "", ""


def _pairs(config: dict[str, Any] | list[Any]) -> Iterable[tuple[str | int, Any]]:
    """The keys or indices of a configuration's part, with their values."""
    return config.items() if is_object(config) else enumerate(config)


def _is_encodable(value: Any) -> bool:
    """False for text with lone surrogates, which JSON allows."""
    try:
        return not isinstance(value, str) or bool(value.encode()) or value == ""
    except UnicodeEncodeError:
        return False


def _is_possible_path(path: str) -> bool:
    """False for a path that no system call accepts."""
    try:
        Path(path).expanduser()
    except RuntimeError:  # the home of an unknown user
        return False
    parts = path.encode().split(b"/")
    return "\0" not in path and max(map(len, parts)) <= 255 and sum(map(len, parts)) + len(parts) <= 4000


def _must_be_local(key: str, value: Any) -> bool:
    name = next((word for word in reversed(key.split(".")) if not word.isdecimal()), "")
    return isinstance(value, str) and bool(_NAMES_A_PATH.search(name)) and name not in _MAY_BE_REMOTE


def _server_in(key: str, value: Any) -> str:
    """The server address that `value` at `key` would make us connect to, or an empty string."""
    if not isinstance(value, str):
        return ""
    if key.endswith("storage.endpoint"):
        return value
    is_server = _is_aim_repo(key) and value.startswith(_AIM)
    return f"http://{value.removeprefix(_AIM)}" if is_server else ""


def _is_aim_repo(key: str) -> bool:
    words = [word for word in key.split(".") if not word.isdecimal()]
    return words[-1:] == ["aim_path"] or words[-2:] == ["loggers", "repo"]


def _path_in(key: str, value: Any) -> str:
    """The path that `value` at `key` of a configuration is or contains, or an empty string."""
    words = [word for word in key.split(".") if not word.isdecimal()]
    if not isinstance(value, str) or not words:
        return ""
    if words[-1] == "network_args":
        return path_in(value)
    if _is_aim_repo(key):
        # Aim takes everything but a server address for a folder.
        return "" if value.startswith(_AIM) else value
    is_path = _NAMES_A_PATH.search(words[-1]) and not _ADDRESS.match(value)
    return value if is_path else ""


def inside(folder: Path, relative: str) -> Path:
    """The real path of `folder / relative`.

    Raises:
        NoSuchFile: it does not exist.
        OutsideRoots: it leaves `folder`.
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
