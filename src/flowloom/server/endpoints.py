"""Where requests may make us connect to: public addresses, and where the owner of the machine said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flowloom.config.secrets import read_secrets, usable_secrets
from flowloom.errors import Denied, SourceError
from flowloom.storage.ssrf import STRICT, Allowed, host_of, resolve


def environ_for_processes(*, needs_secrets: bool) -> dict[str, str]:
    """Environment of what the studio starts: with the secrets, and strict about addresses.

    Requests decide what these processes work on, so no address in it is the word of the machine's owner.

    Raises:
        ConfigError: secrets are needed, and their file cannot be used.
    """
    return {**os.environ, **(read_secrets() if needs_secrets else usable_secrets()), STRICT: "1"}


def unfit_endpoint(endpoint: Any, environ: Mapping[str, str] = os.environ) -> str:
    """Why no request makes us connect to `endpoint`; nothing where it may be reached, or is nowhere."""
    if not isinstance(endpoint, str) or not endpoint:
        return ""
    try:
        resolve(*host_of(endpoint), Allowed.for_stores(environ))
    except Denied as error:
        return str(error)
    except SourceError:  # whoever connects will say so, and to whom
        return ""
    return ""
