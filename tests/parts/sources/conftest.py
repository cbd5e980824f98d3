"""Stores to read from: a real one, and one behind a proxy that does it harm."""

from collections.abc import Iterator
from hashlib import sha256

import pytest

from flowloom.parts.sources.base import Source, StorageSection, open_source
from tests.stand_ins.faulty import Faulty
from tests.stand_ins.seaweed import Seaweed, seaweed  # noqa: F401 -- a fixture


@pytest.fixture
def storage(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> StorageSection:  # noqa: F811
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweed.environ.items():
        monkeypatch.setenv(name, value)
    return StorageSection(endpoint=seaweed.endpoint)


@pytest.fixture
def faulty(seaweed: Seaweed) -> Iterator[Faulty]:  # noqa: F811
    proxy = Faulty(seaweed.endpoint)
    yield proxy
    proxy.down()


@pytest.fixture
def bucket(storage: StorageSection, request: pytest.FixtureRequest) -> Source:
    """A folder of the bucket for each test."""
    return open_source(f"s3://loom/test-{sha256(request.node.name.encode()).hexdigest()[:12]}", storage)
