"""Hostile archives: refused, or unpacked without what is hostile; never more than they may take."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest

from flowloom.datasets.archives.unpack import MAX_ENTRIES, ArchiveRefused, UnpackReport, UnpackRequest, unpack
from tests.datasets.build.test_tars import HOSTILE


def zipped(*files: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # equal names are what is wanted
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data)
    return content.getvalue()


def tarred(*members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def unpacked(tmp_path: Path, content: bytes) -> tuple[UnpackReport, dict[str, bytes]]:
    """The result of unpacking an archive, and its files."""
    (tmp_path / "archive").write_bytes(content)
    folder = tmp_path / "set"
    folder.mkdir(exist_ok=True)
    what = UnpackRequest(tmp_path / "archive", tmp_path / "staging", folder, replaces=False)
    done = unpack(what, lambda _: None)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return done, files


PAIRS = [
    ("x.png/y.png", "x.png"),
    ("x.png", "x.png/y.png"),
    ("X.png/y.png", "x.PNG"),
    ("a/x.png", "A/X.PNG/y.png"),
]


@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize("names", PAIRS)
def test_a_file_and_a_folder_of_one_name_fail_nothing_else(tmp_path: Path, make, names: tuple[str, str]):
    done, files = unpacked(tmp_path, make((names[0], b"1"), (names[1], b"2"), ("good.png", b"3")))
    assert files == {names[0]: b"1", "good.png": b"3"}
    assert done.left_out == [(names[1], "a file and a folder have the same name")]
    assert done.reasons == {"a file and a folder have the same name": 1}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_duplicate_names_are_left_out_and_counted(tmp_path: Path, make):
    twins = [("A.PNG", b"2"), ("a.png", b"3"), ("e\u0301.png", b"5")]
    done, files = unpacked(tmp_path, make(("a.png", b"1"), *twins[:2], ("\u00e9.png", b"4"), twins[2]))
    assert files == {"a.png": b"1", "\u00e9.png": b"4"}
    assert done.reasons == {"an earlier entry has the same name": 3}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_names_that_lead_out_or_are_no_names_are_left_out(tmp_path: Path, make):
    names = [
        "/abs.png",
        "../up.png",
        "a/../../up.png",
        "C:\\x.png",
        "a\n.png",
        "a\x85.png",
        "a\u2028.png",
        "a\x1b.png",
    ]
    done, files = unpacked(
        tmp_path, make(*((name, b"x") for name in names), ("good.png", b"y"), ("in.zip", b"z"))
    )
    assert files == {"good.png": b"y"}
    assert done.num_left_out == len(names) + 1
    assert not list(tmp_path.glob("*up*"))


def test_links_and_devices_of_a_tar_are_left_out(tmp_path: Path):
    members = []
    for number, kind in enumerate(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    ):
        info = tarfile.TarInfo(f"{number}.png")
        info.type, info.linkname = kind, "/etc/passwd"
        members.append(info)
    done, files = unpacked(tmp_path, tarred(*members, ("good.png", b"y")))
    assert files == {"good.png": b"y"}
    assert done.reasons == {"it is a link": 2, "it is not a regular file": 3}


def test_a_link_and_a_file_behind_it_lead_nowhere(tmp_path: Path):
    link = tarfile.TarInfo("dir")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    _, files = unpacked(tmp_path, tarred(link, ("dir/a.png", b"x")))
    assert files == {"dir/a.png": b"x"}
    assert not (tmp_path / "a.png").exists()


def test_names_that_are_not_unicode_are_left_out(tmp_path: Path):
    content = tarred(("a?.png", b"x"), ("good.png", b"y")).replace(b"a?.png", b"a\xff.png")
    at = 148
    head = bytearray(content[:512])
    head[at : at + 8] = b" " * 8
    content = bytes(head[:at]) + b"%06o\0 " % sum(head) + content[at + 8 :]
    done, files = unpacked(tmp_path, content)
    assert files == {"good.png": b"y"}
    assert done.reasons == {"it is not Unicode": 1}


def overlapping(count: int) -> bytes:
    """A zip of `count` entries whose content is the same bytes."""
    content = zipped(("0.png", bytes(2**20)))
    at = content.index(b"PK\x01\x02")
    entry, end = content[at : content.index(b"PK\x05\x06")], content[content.index(b"PK\x05\x06") :]
    entries = b"".join(entry.replace(b"0.png", b"%05d" % i) for i in range(count))
    fields = struct.pack("<HHII", count, count, len(entries), at)
    return content[:at] + entries + end[:8] + fields + end[20:]


def test_entries_that_overlap_are_refused(tmp_path: Path):
    with pytest.raises(ArchiveRefused, match="overlap"):
        unpacked(tmp_path, overlapping(50))


def test_a_list_of_too_many_entries_is_refused_before_it_is_read(tmp_path: Path):
    content = bytearray(zipped(("a.png", b"x")))
    at = content.index(b"PK\x05\x06")
    struct.pack_into("<I", content, at + 12, 2**31)
    with pytest.raises(ArchiveRefused, match="its list of entries has 2,147,483,648 bytes"):
        unpacked(tmp_path, bytes(content))
    record = b"PK\x06\x06" + struct.pack(
        "<QHHIIQQQQ", 44, 45, 45, 0, 0, MAX_ENTRIES + 1, MAX_ENTRIES + 1, 46, 0
    )
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at, 1)
    end = bytearray(content[at:])
    struct.pack_into("<HHI", end, 8, 0xFFFF, 0xFFFF, 0xFFFFFFFF)
    with pytest.raises(ArchiveRefused, match="1,000,001 entries"):
        unpacked(tmp_path, bytes(content[:at]) + record + locator + bytes(end))


def test_a_wrong_size_extracts_no_more_than_stated(tmp_path: Path):
    for size in (10, 2**32 - 2):
        content = bytearray(zipped(("a.png", bytes(2**20))))
        struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, size)
        with pytest.raises(ArchiveRefused):
            unpacked(tmp_path, bytes(content))


def test_a_large_size_in_the_field_of_large_zips_is_refused(tmp_path: Path):
    content = bytearray(zipped(("a.png", b"x" * 1000)))
    at = content.index(b"PK\x01\x02")
    extra = struct.pack("<HHQ", 1, 8, 2**50)
    struct.pack_into("<I", content, at + 24, 0xFFFFFFFF)
    struct.pack_into("<H", content, at + 30, len(extra))
    content[at + 46 + 5 : at + 46 + 5] = extra
    end = content.index(b"PK\x05\x06")
    struct.pack_into("<I", content, end + 12, end - at)
    with pytest.raises(ArchiveRefused, match=r"bomb|needs"):
        unpacked(tmp_path, bytes(content))


def test_an_encrypted_member_is_refused_with_a_hint(tmp_path: Path):
    content = bytearray(zipped(("a.png", b"x"), ("b.png", b"y")))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ArchiveRefused, match="encrypted: create it without a password"):
        unpacked(tmp_path, bytes(content))


def test_a_packed_bomb_is_stopped_on_its_way(tmp_path: Path):
    with pytest.raises(ArchiveRefused, match="bomb"):
        unpacked(tmp_path, tarred(("a.png", bytes(150 * 2**20)), mode="w:gz"))


UNPACK = """
import sys, time
from pathlib import Path
from flowloom.datasets.archives.unpack import ArchiveRefused, UnpackRequest, unpack
where = Path(sys.argv[1])
began = time.monotonic()
try:
    unpack(UnpackRequest(where / "a", where / "staging", where, False), lambda _: None)
except ArchiveRefused as error:
    print(error, file=sys.stderr)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak, time.monotonic() - began)
"""


@pytest.mark.timing
@pytest.mark.parametrize("kind", ["long name", "pax"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_name_of_gigabytes_is_refused_in_bounded_memory_and_time(
    tmp_path: Path, kind: str, is_packed: bool
):
    packer = zlib.compressobj(1, wbits=31)
    with (tmp_path / "a").open("wb") as file:
        if is_packed:
            file.write(packer.compress(HOSTILE[kind]))
            for _ in range(64):
                file.write(packer.compress(bytes(2**20)))
            file.write(packer.flush())
        else:
            file.write(HOSTILE[kind])
            file.truncate(3 * 2**29 + 4096)
    done = subprocess.run(
        [sys.executable, "-c", UNPACK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kib, seconds = map(float, done.stdout.split())
    assert "name or header of 1,610,612,736 bytes" in done.stderr
    assert (kib < 300 * 1024, seconds < 5) == (True, True)
