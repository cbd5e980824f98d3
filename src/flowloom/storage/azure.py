"""Azure Blob Storage: `az://container/prefix`, account and key by AZURE_STORAGE_ACCOUNT_NAME and _KEY."""

from __future__ import annotations

from functools import partial

from flowloom.storage.base import OnState, StorageSection
from flowloom.storage.objects import Objects, client_options, open_objects


def open_store(url: str, storage: StorageSection, on_state: OnState) -> Objects:
    """The container of `url`."""
    from obstore.store import AzureStore

    make = partial(AzureStore, skip_signature=storage.anonymous, client_options=client_options(storage))
    return open_objects(url, storage, on_state, make)
