"""Endpoints that requests may use: public addresses, and those that the machine's owner allowed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flowloom.config.secrets import read_secrets, usable_secrets
from flowloom.errors import Denied, SourceError
from flowloom.storage.ssrf import STRICT, Allowed, host_of, resolve


def environ_for_processes(*, needs_secrets: bool) -> dict[str, str]:
    """Environment of processes that the studio starts: with the secrets, and strict about addresses.

    Requests decide what these processes do, so the addresses they name are not trusted.

    Raises:
        ConfigError: secrets are needed, and their file cannot be used.
    """
    return {**os.environ, **(read_secrets() if needs_secrets else usable_secrets()), STRICT: "1"}


def endpoint_problem(endpoint: Any, environ: Mapping[str, str] = os.environ) -> str:
    """The reason why requests may not use `endpoint`; empty if they may, or if it does not exist."""
    if not isinstance(endpoint, str) or not endpoint:
        return ""
    try:
        resolve(*host_of(endpoint), Allowed.for_stores(environ))
    except Denied as error:
        return str(error)
    except SourceError:  # the connection itself reports it
        return ""
    return ""
