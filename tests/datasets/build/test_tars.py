"""Samples of a tar are paired however its members are named and ordered; hostile headers are refused."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import orjson
import pytest

from flowloom.datasets.build.tars import MAX_HEADER_BYTES, is_tar, open_tar
from tests.datasets.build.images import built, greys, image_bytes


def tarred(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def text(number: int) -> bytes:
    return f"boat {number}".encode()


FORMS = {
    "in pairs": [(f"{i}.{end}", i) for i in range(3) for end in ("png", "txt")],
    "by kind": [(f"{i}.{end}", i) for end in ("png", "txt") for i in range(3)],
    "texts first": [(f"{i}.{end}", i) for end in ("txt", "png") for i in range(3)],
    "dots": [(f"boat_v1.{i}.{end}", i) for i in range(3) for end in ("png", "txt")],
    "dots by kind": [(f"./boat_v1.{i}.{end}", i) for end in ("png", "txt") for i in range(3)],
    "endings": [(f"s{i}.{end}", i) for i in range(3) for end in ("input.png", "output.txt")],
    "upper case": [(f"S{i}.{end}", i) for i in range(3) for end in ("PNG", "TXT")],
    "folders": [(f"./v1.{i}/boat.{end}", i) for i in range(3) for end in ("png", "txt")],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_caption_goes_to_its_image(tmp_path: Path, form: str, mode: str) -> None:
    members = [(name, text(i) if name.lower().endswith("txt") else image_bytes(i)) for name, i in FORMS[form]]
    path = tarred(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), members, mode)
    rows, report = built(path, tmp_path / "d.jsonl")
    assert greys(rows, report.root) == {i: [f"boat {i}"] for i in range(3)}
    assert not report.unusable


def test_equal_keys_at_several_places_stay_several_samples(tmp_path: Path) -> None:
    members = [("a.png", image_bytes(1)), ("a.txt", b"1"), ("b.png", image_bytes(2)), ("b.txt", b"2")]
    members += [("a.png", image_bytes(3)), ("a.txt", b"3")]
    rows, report = built(tarred(tmp_path / "a.tar", members), tmp_path / "d.jsonl")
    assert greys(rows, report.root) == {1: ["1"], 2: ["2"], 3: ["3"]}


def test_images_and_captions_without_a_partner_are_reported(tmp_path: Path) -> None:
    members = [("a.png", image_bytes(1)), ("b.txt", b"2"), ("c.png", image_bytes(3)), ("c.txt", b"3")]
    rows, report = built(tarred(tmp_path / "a.tar", members), tmp_path / "d.jsonl")
    assert greys(rows, report.root) == {3: ["3"]}
    assert [bad.where for bad in report.unusable] == ["a.tar!a.png"]
    assert report.remarks["a sample without an image"] == 1


def test_json_with_a_mark_and_in_upper_case_is_read(tmp_path: Path) -> None:
    fields = orjson.dumps({"caption": "x", "filename": "den/1.png", "loss_weight": 0.5})
    members = [("A.PNG", image_bytes(1)), ("A.JSON", b"\xef\xbb\xbf" + fields)]
    rows, _ = built(tarred(tmp_path / "a.tar", members), tmp_path / "d.jsonl")
    assert [(row["filename"], row["loss_weight"]) for row in rows] == [("den/1.png", 0.5)]


def header(kind: bytes, size: int, name: str = "././@LongLink") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "long name": header(tarfile.GNUTYPE_LONGNAME, 3 * 2**29),
    "long link": header(tarfile.GNUTYPE_LONGLINK, 3 * 2**29),
    "pax": header(tarfile.XHDTYPE, 3 * 2**29),
    "global pax": header(tarfile.XGLTYPE, 3 * 2**29),
    "negative": header(tarfile.GNUTYPE_LONGNAME, -512),
}
READ = """
import sys, time
from flowloom.datasets.build.tars import open_tar, is_tar
import tarfile
began = time.monotonic()
assert not is_tar(sys.argv[1])
try:
    with open_tar(sys.argv[1], "r|*") as tar:
        for member in tar:
            pass
except tarfile.TarError as error:
    print(error, file=sys.stderr)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak, time.monotonic() - began)
"""


@pytest.mark.timing
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_name_of_gigabytes_is_refused_in_bounded_memory_and_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(HOSTILE[kind])
        file.truncate(3 * 2**29 + 4096)  # the name itself: zeros, which take no room on the disk
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    kib, seconds = map(float, done.stdout.split())
    assert "name or header of" in done.stderr
    assert (kib < 300 * 1024, seconds < 5) == (True, True)


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    name = b"x" * 511 + b"\0"
    many = (header(tarfile.GNUTYPE_LONGNAME, len(name)) + name) * 2000
    (tmp_path / "a.tar").write_bytes(many)
    with pytest.raises(tarfile.ReadError, match="more names and headers than files"):
        open_tar(tmp_path / "a.tar", "r:")
    (tmp_path / "b.tar").write_bytes(header(tarfile.GNUTYPE_SPARSE, 10, "a.png") + bytes(2048))
    with pytest.raises(tarfile.ReadError, match="sparse"):
        open_tar(tmp_path / "b.tar", "r:")


def test_long_names_as_people_have_them_are_read(tmp_path: Path) -> None:
    name = "a" * 200 + ".png"
    assert len(name) < MAX_HEADER_BYTES
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            info = tarfile.TarInfo(name)
            tar.addfile(info)
        assert is_tar(tmp_path / "a.tar")
        with open_tar(tmp_path / "a.tar", "r:") as tar:
            assert tar.getnames() == [name]


def test_members_that_are_not_read_are_counted(tmp_path: Path) -> None:
    """Names that start with a dot lead out or are hidden; links of a tar are not followed."""
    source = tmp_path / "x.tar"
    with tarfile.open(source, "w") as tar:
        for name in (
            "../up.png",
            "..\\..\\up.png",
            ".hidden/b.png",
            "._a.png",
            "a\nb\\c.png",
            "d-masklabel1.png",
        ):
            member = tarfile.TarInfo(name)
            member.size = len(image_bytes(1))
            tar.addfile(member, io.BytesIO(image_bytes(1)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a\nb\\c.png"
        tar.addfile(link)
    rows, report = built(source, tmp_path / "d.jsonl", default_caption="a fox")
    assert [row["filename"] for row in rows] == ["x/a\nb\\c.png"]
    assert report.remarks == {
        "not read: its name is hidden or leads out": 3,
        "not read: a link": 1,
        "not trained: a mask by its name (-masklabel)": 1,
    }
    assert not (tmp_path / "up.png").exists()
