"""An encoder is known by its content: another one under the same name is noticed, and each is hashed once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flowloom.config.run import RunConfig
from flowloom.data.cache import setup as open_cache
from flowloom.data.cache.setup import ENCODERS, EncoderFiles
from flowloom.engine.fill_cache import fill


def other_content(path: Path) -> bytes:
    """Of the same size, and as readable."""
    raw = path.read_bytes()
    return raw.replace(b": ", b" :", 1) if path.suffix == ".json" else raw[:-1] + bytes([raw[-1] ^ 1])


def replaced_in_place(path: Path) -> None:
    """Other content under the same name, of the same size, with the times of before, as `cp -p` leaves it."""
    stat = path.stat()
    path.write_bytes(other_content(path))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replaced_by_another(path: Path) -> None:
    """As `rsync -t` and `mv` leave it: another file under the name, with the size and times of before."""
    stat = path.stat()
    other = path.with_name("other")
    other.write_bytes(other_content(path))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


def make_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written a moment ago count as old: else they are hashed each time."""
    monkeypatch.setattr(open_cache, "JUST_WRITTEN_NS", 0)


@pytest.mark.parametrize("replace", [replaced_in_place, replaced_by_another])
@pytest.mark.parametrize(
    ("name", "images", "captions"),
    [("ae.safetensors", 22, 0), ("t5/model.safetensors", 0, 23), ("t5/config.json", 0, 23)],
)
def test_an_encoder_replaced_by_one_of_the_same_name_size_and_time_is_noticed(
    make_config: Callable[..., RunConfig],
    own_encoders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replace: Callable[[Path], None],
    name: str,
    images: int,
    captions: int,
) -> None:
    make_settled(monkeypatch)
    config = make_config(
        model=own_encoders,
        cache={"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache")},
        dataloader={"shuffle_tags": False, "tag_drop_percentage": 0.0},
        objective={"lowercase_percentage": 0.0},
    )
    first = fill(config)
    assert (first.images, first.captions) == (22, 23)
    replace(tmp_path / "encoders" / name)
    again = fill(config)
    assert (again.images, again.captions) == (images, captions)


def test_the_shards_of_an_index_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the index is named, or its folder; deleting them later leaves the key unchanged."""
    make_settled(monkeypatch)
    folder = tmp_path / "t5"
    folder.mkdir()
    shards = [folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard in shards:
        shard.write_bytes(shard.name.encode())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{i}": shard.name for i, shard in enumerate(shards)}}))
    files = EncoderFiles(tmp_path / "cache")
    for path in (index, folder):
        before = files.digest([path])
        replaced_in_place(shards[1])
        after = files.digest([path])
        assert after != before
        assert EncoderFiles(tmp_path / "cache").digest([path]) == after
    expected = [files.digest([path]) for path in (index, folder)]
    for shard in shards:
        shard.unlink()
    assert [files.digest([path]) for path in (index, folder)] == expected


def test_encoders_are_hashed_once_and_records_of_earlier_versions_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They knew name, size and time alone: the files are hashed again, and caches are not filled again."""
    make_settled(monkeypatch)
    vae, link = tmp_path / "ae.safetensors", tmp_path / "link.safetensors"
    vae.write_bytes(b"weights")
    link.symlink_to(vae)
    files = EncoderFiles(tmp_path)
    expected = files.digest([vae])
    stat = vae.stat()
    old = {str(vae): {"digest": expected.hex(), "files": [[vae.name, stat.st_size, stat.st_mtime_ns]]}}
    (tmp_path / ENCODERS).write_text(json.dumps(old))
    assert files.digest([link]) == expected
    written = (tmp_path / ENCODERS).stat().st_ino
    assert files.digest([link]) == expected
    assert (tmp_path / ENCODERS).stat().st_ino == written, "nothing new was found out"
    link.unlink()
    vae.unlink()
    assert files.digest([link]) == expected
    (tmp_path / ENCODERS).write_text(json.dumps(old))
    assert files.digest([vae]) == expected
