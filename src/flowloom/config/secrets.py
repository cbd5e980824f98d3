"""Tokens and passwords: from the environment, or from one file that only its owner may read.

Other processes get them through the environment only, never in argv, run.json, events, logs or responses.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flowloom.errors import ConfigError, DataError, Problem
from flowloom.files import open_plain, parsed, replacing
from flowloom.json_types import is_array, is_object
from flowloom.printable import printable
from flowloom.text_files import decode

NAMES = ("HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Environment variables that hold a secret; the file has the same names as keys."""

_writing = threading.Lock()
_MASK = "[secret]"
_MOST_BYTES = 2**20
_REMOTE = re.compile(r"^\s*(s3|gs|az|hf)://|huggingface\.co", re.IGNORECASE)
_NAMES_A_SERVICE = re.compile(r"(^|_)(repo|repo_id|wandb_api_key|wandb_key|hf_token|huggingface_token)$")
_SHORTEST = 6
"""Shorter values are not masked, because they occur in ordinary words."""


def secrets_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Path of the file: FLOWLOOM_SECRETS, or ~/.config/flowloom/secrets.json."""
    return Path(environ.get("FLOWLOOM_SECRETS") or "~/.config/flowloom/secrets.json").expanduser()


def read_secrets(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The available secrets by name; the environment overrides the file.

    Raises:
        ConfigError: other users may read the file, or it is not an object of known names and strings.
    """
    return _read_file(secrets_path(environ)) | {name: environ[name] for name in NAMES if environ.get(name)}


def usable_secrets(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """As `read_secrets`, but ignores a damaged file: for masking, or where no secret is needed."""
    try:
        return read_secrets(environ)
    except ConfigError:
        return {name: environ[name] for name in NAMES if environ.get(name)}


def may_need_secrets(config: Any, key: str = "") -> bool:
    """True if a run with this configuration may access a store, the hub or a tracker."""
    if is_object(config):
        return any(may_need_secrets(value, str(name)) for name, value in config.items())
    if is_array(config):
        return any(may_need_secrets(value, key) for value in config)
    if not isinstance(config, str) or not config:
        return False
    return bool(_REMOTE.search(config)) or config == "wandb" or bool(_NAMES_A_SERVICE.search(key))


def write_secret(name: str, value: str | None, environ: Mapping[str, str] = os.environ) -> None:
    """Set a secret in the file, or remove it (None). Only the owner may read the file.

    Raises:
        ConfigError: the existing file is damaged.
    """
    path = secrets_path(environ)
    with _writing:
        others = {key: secret for key, secret in _read_file(path).items() if key != name}
        content = others if value is None else others | {name: value}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with replacing(path, partial, 0o600) as file:
            file.write(json.dumps(content).encode())


def redact(text: str, secrets: Collection[str]) -> str:
    """Printable `text` with the `secrets` masked, both plain and in JSON's spelling."""
    text = printable(text)
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            # JSON's spelling first: masking a part of its escapes would break the line.
            for written in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], secret):
                text = text.replace(written, _MASK)
    return text


def _read_file(path: Path) -> dict[str, str]:
    try:
        with open_plain(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                message = f"other users may read it (mode {mode:04o}). Run: chmod 600 {path}"
                raise ConfigError(str(path), [Problem("", message)])
            content = parsed(decode(file.read(_MOST_BYTES)).encode())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        message = f"cannot be read ({error.strerror}). Replace it, or set FLOWLOOM_SECRETS to another path."
        raise ConfigError(str(path), [Problem("", message)]) from None
    except (ValueError, DataError):
        # Without the parser's message, which may quote the file.
        raise ConfigError(str(path), [Problem("", "is not JSON.")]) from None
    if not is_object(content):
        raise ConfigError(str(path), [Problem("", 'write a JSON object such as {"HF_TOKEN": "..."}.')])
    problems = [
        Problem(name, f"unknown secret. Known are {', '.join(NAMES)}.")
        if name not in NAMES
        else Problem(name, "must be text.")
        for name, value in content.items()
        if name not in NAMES or not isinstance(value, str)
    ]
    if problems:
        raise ConfigError(str(path), problems)
    return content
