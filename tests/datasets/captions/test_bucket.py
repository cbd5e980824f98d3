"""Captions beside the images of a real store: replaced by etag, with a journal, and never without access."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from flowloom.datasets.captions.bucket import BucketCaptions
from flowloom.datasets.captions.journal import Journal, pending
from flowloom.datasets.captions.store import CaptionError, CaptionRef, Change
from flowloom.storage.base import StorageSection
from tests.fakes.faulty import Faulty
from tests.fakes.seaweed import Seaweed

READER, READERS_SECRET = "reader-key", "reader-secret"


@pytest.fixture
def store(tmp_path: Path, storage: StorageSection) -> BucketCaptions:
    store = BucketCaptions(f"s3://loom/{tmp_path.name}", storage)
    store.objects.write("a.txt", b"a fox")
    store.objects.write("b.txt", b"two foxes")
    return store


def change(place: str, before: bytes | None, after: bytes | None) -> Change:
    return Change(place.replace(".txt", ".png"), place, before, after)


def test_captions_are_written_created_and_removed_and_undone_byte_for_byte(
    store: BucketCaptions, tmp_path: Path
) -> None:
    changes = [
        change("a.txt", b"a fox", b"a red fox"),
        change("b.txt", b"two foxes", None),
        change("c.txt", None, b"new"),
    ]
    with closing(Journal(tmp_path / "captions.jsonl")) as journal:
        journal.add(changes)
        assert store.write(changes).num_written == 3
        assert [store.read(name) for name in ("a.txt", "b.txt", "c.txt")] == [b"a red fox", None, b"new"]
        undone = store.write(pending(store, journal.changes(), [], is_undo=True))
    assert (undone.num_written, undone.changed_meanwhile) == (3, [])
    assert [store.read(name) for name in ("a.txt", "b.txt", "c.txt")] == [b"a fox", b"two foxes", None]
    assert sorted(info.name for info in store.objects.list()) == ["a.txt", "b.txt"]


def test_a_change_by_another_program_between_read_and_write_is_kept(
    store: BucketCaptions, storage: StorageSection, faulty: Faulty, tmp_path: Path
) -> None:
    through = storage.model_copy(update={"endpoint": faulty.url})
    ours = BucketCaptions(store.objects.root, through)

    def plan(_number: int, method: str, path: str) -> None:
        if method == "PUT":  # after our read, before our write
            store.objects.write(path.rpartition("/")[2], b"theirs")

    faulty.plan = plan
    written = ours.write([change("a.txt", b"a fox", b"ours"), change("c.txt", None, b"ours")])
    assert written.num_written == 0
    assert written.changed_meanwhile == [CaptionRef("a.png", "a.txt"), CaptionRef("c.png", "c.txt")]
    assert ours.write([change("b.txt", b"two foxes", None)]).num_written == 0
    assert [store.read(name) for name in ("a.txt", "b.txt", "c.txt")] == [b"theirs"] * 3


def test_a_write_whose_response_is_lost_counts_as_written(
    store: BucketCaptions, storage: StorageSection, faulty: Faulty
) -> None:
    ours = BucketCaptions(store.objects.root, storage.model_copy(update={"endpoint": faulty.url}))
    lost: list[str] = []

    def plan(_number: int, method: str, path: str) -> str | None:
        if method == "PUT" and not lost:
            lost.append(path)
            return "lost"
        return None

    faulty.plan = plan
    assert ours.write([change("a.txt", b"a fox", b"ours")]).num_written == 1
    assert faulty.done["lost"] == 1
    assert store.read("a.txt") == b"ours"


def test_keys_that_only_read_are_one_error_before_anything_is_written(
    store: BucketCaptions, storage: StorageSection, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.require_access()
    seaweed.give_keys(READER, READERS_SECRET, actions="Read,List")
    try:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READERS_SECRET)
        reader = BucketCaptions(store.objects.root, storage)
        assert reader.read("a.txt") == b"a fox"
        with pytest.raises(CaptionError, match="captions cannot be written with these keys") as caught:
            reader.require_access()
        assert READERS_SECRET not in str(caught.value)
        assert "permission to write" in caught.value.hint
    finally:
        seaweed.revoke_keys(READER)
    assert sorted(info.name for info in store.objects.list()) == ["a.txt", "b.txt"]


def test_only_caption_files_are_written(store: BucketCaptions) -> None:
    with pytest.raises(CaptionError, match="was not changed"):
        store.write([change("a.png", None, b"x")])
    with pytest.raises(CaptionError, match="not a bucket"):
        BucketCaptions("/tmp", StorageSection())
