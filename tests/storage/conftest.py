"""A place in a real store for each test."""

from hashlib import sha256

import pytest

from flowloom.storage.base import Source, StorageSection
from flowloom.storage.open import open_source


@pytest.fixture
def bucket(storage: StorageSection, request: pytest.FixtureRequest) -> Source:
    """A folder of the bucket."""
    return open_source(f"s3://loom/test-{sha256(request.node.name.encode()).hexdigest()[:12]}", storage)
