"""Uploads reserve their disk space when they begin."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowloom.server.datasets.locations import Dataset
from flowloom.server.datasets.reserved import SPARE_BYTES, NoRoom
from flowloom.server.datasets.uploads import Upload, Uploads

NAME = "filename YS56aXA="  # a.zip, which may be there several times


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes that uploads may have, as if the disk had them, not those of the machine's disk."""
    room = 1000
    usage = shutil.disk_usage(tmp_path)._replace(free=SPARE_BYTES + room)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return room


def dataset(tmp_path: Path, name: str) -> Dataset:
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Dataset(name, "folder", folder)


def test_two_uploads_that_exceed_the_disk_together_are_not_both_begun(tmp_path: Path, room: int):
    uploads = Uploads()
    uploads.create(dataset(tmp_path, "fox"), 600, NAME)
    message = r"The file has 600 bytes. The disk has 1,000 bytes.*unfinished uploads need 600"
    with pytest.raises(NoRoom, match=message):
        uploads.create(dataset(tmp_path, "owl"), 600, NAME)
    uploads.create(dataset(tmp_path, "owl"), 400, NAME)


def test_of_many_uploads_at_once_as_many_begin_as_fit(tmp_path: Path, room: int):
    uploads, fox = Uploads(), dataset(tmp_path, "fox")

    def begin(_: int) -> bool:
        try:
            uploads.create(fox, 300, NAME)
        except NoRoom:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(16))) == 3


def test_received_and_ended_uploads_reserve_no_space(tmp_path: Path, room: int):
    uploads, fox = Uploads(), dataset(tmp_path, "fox")
    first: Upload = uploads.create(fox, 1000, NAME)
    first.data.write_bytes(bytes(700))  # the disk's own number falls as much, which this test holds still
    second = uploads.create(fox, 700, NAME)
    uploads.end(fox, second)
    uploads.create(fox, 700, NAME)


def test_uploads_from_before_a_restart_keep_their_space(tmp_path: Path, room: int):
    Uploads().create(dataset(tmp_path, "fox"), 900, NAME)
    with pytest.raises(NoRoom):
        Uploads().create(dataset(tmp_path, "owl"), 200, NAME)
