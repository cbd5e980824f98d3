"""Where object stores may be: at public addresses, and where the owner of the machine said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from flowloom.errors import Denied, SourceError
from flowloom.parts.sources.addresses import Allowed, host_of, resolve

_OWN = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""What the owner names here may be private."""


def unfit_endpoint(endpoint: Any, environ: Mapping[str, str] = os.environ) -> str:
    """Why no request makes us connect to `endpoint`; nothing where it may be reached, or is nowhere."""
    if not isinstance(endpoint, str) or not endpoint:
        return ""
    allowed = Allowed.from_environment(environ)
    own = {(urlsplit(environ.get(name, "")).hostname or "").lower() for name in _OWN} - {""}
    try:
        resolve(*host_of(endpoint), replace(allowed, names=allowed.names | own))
    except Denied as error:
        return str(error)
    except SourceError:  # whoever connects will say so, and to whom
        return ""
    return ""
