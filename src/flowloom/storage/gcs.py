"""Google Cloud Storage: `gs://bucket/prefix`, keys by GOOGLE_APPLICATION_CREDENTIALS and the like."""

from __future__ import annotations

from functools import partial

from flowloom.storage.base import OnState, StorageSection
from flowloom.storage.objects import Objects, client_options, open_objects


def open_store(url: str, storage: StorageSection, on_state: OnState) -> Objects:
    """The bucket of `url`."""
    from obstore.store import GCSStore

    make = partial(GCSStore, skip_signature=storage.anonymous, client_options=client_options(storage))
    return open_objects(url, storage, on_state, make)
