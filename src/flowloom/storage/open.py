"""Open a store by its URL: one module per kind of store."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

from flowloom.errors import SourceError
from flowloom.storage.base import OnState, Source, StorageSection, StoreState, scheme_of, shown

STORES = {
    "": "local",
    "file": "local",
    "http": "http",
    "https": "http",
    "s3": "s3",
    "gs": "gcs",
    "az": "azure",
}
"""The module for each scheme; it has `open_store(url, storage, on_state)`."""


def open_source(url: str | Path, storage: StorageSection, on_state: OnState | None = None) -> Source:
    """The source at `url`: a folder, `file://`, `http(s)://host`, `s3://bucket/prefix`, `gs://`, `az://`.

    For URLs given by the user. `on_state` is called when the store goes down and when it is back; by default
    these states are logged. No request is sent yet.

    Raises:
        SourceError: there is no store for this kind of URL.
    """
    scheme = scheme_of(str(url))
    if scheme not in STORES:
        known = ", ".join(f"{name}://" for name in STORES if name)
        raise SourceError(f"{shown(str(url))}: use a folder, or a URL that begins with {known}.")
    module = importlib.import_module(f"flowloom.storage.{STORES[scheme]}")
    return module.open_store(str(url), storage, on_state or _log)


def open_named(url: str, storage: StorageSection, on_state: OnState | None = None) -> Source:
    """The source at `url`, a URL in a dataset, which is untrusted.

    Reads raise Denied for a private network and for this machine, including a cloud's metadata service,
    unless FLOWLOOM_PRIVATE_HOSTS allows the host. The endpoint and credentials of a bucket come from
    `storage`; a row cannot redirect a request.

    Raises:
        SourceError: there is no store for this kind of URL, or it is a file.
    """
    scheme = scheme_of(url)
    if scheme in ("", "file"):
        raise SourceError(f"{shown(url)}: a dataset cannot use files outside its folder.")
    if STORES.get(scheme) != "http":
        return open_source(url, storage, on_state)
    from flowloom.storage import http

    return http.open_store(url, storage, on_state or _log, is_given=False)


def _log(state: StoreState) -> None:
    logging.getLogger(__name__).warning("%s", state)
