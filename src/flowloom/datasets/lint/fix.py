"""`flowloom dataset fix`: writes a repaired copy of the JSONL; the original and its images are kept."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from flowloom.data.metadata import read_metadata
from flowloom.data.row_checks import BadRow, parse
from flowloom.datasets.lint.captions import mended_text
from flowloom.datasets.lint.check import LintOptions, Seen, lint
from flowloom.datasets.lint.look import shown_size
from flowloom.datasets.lint.report import Finding
from flowloom.errors import DataError, ImageError
from flowloom.storage.local import find_image

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class FixOptions:
    """What counts as mended."""

    lint: LintOptions
    drop_near: bool = False
    """Keep only the largest of each group of near duplicates."""
    drop_empty: bool = False
    """Take out rows without a caption."""


@dataclass(frozen=True)
class Change:
    """One thing done to one line."""

    line: int
    action: str


@dataclass
class Fixed:
    """What became of a JSONL."""

    path: Path
    changes: list[Change]
    num_read: int
    num_written: int


Rows = dict[int, dict[str, Any]]
"""The fields of each row by the number of its line."""


def fix(options: FixOptions, out: Path) -> Fixed:
    """Write the mended rows of the data set of `options` to `out`.

    Line by line: text is decoded anew where it was decoded wrongly, fields get their types, names their
    files, sizes are those of the files; then rows that nothing mends are taken out, and copies but one.

    Raises:
        DataError: `out` exists, the JSONL is missing, or nothing usable is left.
    """
    config = options.lint.config
    source = Path(config.dataloader.jsonl_metadata_path)
    if out.exists():
        raise DataError(f"{out}: is there already. Name a new file: nothing is overwritten.")
    if not source.is_file():
        raise DataError(f"{source}: no such file.")
    changes: list[Change] = []
    rows = _read(source, changes)
    num_read = len(rows)
    folder = Path(config.dataloader.image_folder_path)
    for line, row in rows.items():
        changes += (Change(line, action) for action in _mend(row, folder, options.lint.with_images))
    partial = out.with_name(f"{out.name}.partial")
    try:
        _write(partial, rows)
        data = config.dataloader.model_copy(update={"jsonl_metadata_path": str(partial)})
        lint_options = replace(options.lint, config=config.model_copy(update={"dataloader": data}))
        _drop_broken(rows, partial, changes)
        _apply(rows, lint(lint_options), options, changes)
        if not rows:
            raise DataError(f"{source}: no row is left of {num_read}: nothing was written.")
        partial.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows.values()))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    changes.sort(key=lambda change: change.line)
    return Fixed(out, changes, num_read, len(rows))


def _write(path: Path, rows: Rows) -> None:
    """Each row in the line it came from, so that line numbers stay true."""
    path.parent.mkdir(parents=True, exist_ok=True)
    last = max(rows, default=0)
    lines = (orjson.dumps(rows[line]) if line in rows else b"" for line in range(1, last + 1))
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def _read(path: Path, changes: list[Change]) -> Rows:
    """The rows that are JSON objects, in whatever encoding their lines are."""
    rows: Rows = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text, note = _decoded(line)
            if not text.strip():
                continue
            row = parse(text.encode())
            if isinstance(row, BadRow) and not row.fields:
                changes.append(Change(number, f"row taken out: {row.reason}"))
                continue
            if note:
                changes.append(Change(number, note))
            rows[number] = row.fields
    return rows


def _decoded(line: bytes) -> tuple[str, str]:
    """A line's text, and what was done to it."""
    if line.startswith(b"\xef\xbb\xbf"):
        line = line[3:]
    try:
        return line.decode("utf-8"), ""
    except UnicodeDecodeError:
        pass
    try:
        return line.decode("cp1252"), "read as Windows-1252, written as UTF-8"
    except UnicodeDecodeError:
        return line.decode("latin-1"), "read as Latin-1, written as UTF-8"


def _mend(row: dict[str, Any], folder: Path, with_images: bool) -> Iterator[str]:
    """Change `row` where a field can be mended; what was done."""
    for key in ("filename", "caption_or_tags"):
        value = row.get(key)
        if (
            isinstance(value, list)
            and key == "caption_or_tags"
            and all(isinstance(tag, str) for tag in value)
        ):
            row[key] = ", ".join(value)
            yield f"{key}: a list of {len(value)} tags, joined by commas"
        if isinstance(value, str) and mended_text(value) != value:
            row[key] = mended_text(value)
            yield f"{key}: {value:.60} is now {row[key]:.60}"
    for key in ("is_tag_based", "is_url_based"):
        yield from _mend_flag(row, key)
    yield from _mend_weight(row)
    if isinstance(row.get("filename"), str) and not row.get("is_url_based"):
        yield from _mend_name(row, folder)
        if with_images:
            yield from _mend_size(row, folder)


def _mend_flag(row: dict[str, Any], key: str) -> Iterator[str]:
    value = row.get(key)
    word = str(value).strip().lower()
    if value is None or isinstance(value, bool) or word not in TRUE + FALSE:
        return
    row[key] = word in TRUE
    yield f"{key}: {value!r} is now {str(row[key]).lower()}"


def _mend_weight(row: dict[str, Any]) -> Iterator[str]:
    value = row.get("loss_weight")
    if value is None:
        return
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = 1.0
    weight = min(max(weight, 0.0), 1.0) if weight == weight else 1.0
    if isinstance(value, bool | str) or weight != value:
        row["loss_weight"] = weight
        yield f"loss_weight: {value!r:.40} is now {weight:g}"


def _mend_name(row: dict[str, Any], folder: Path) -> Iterator[str]:
    """Give the row another spelling of its name, if a file has that and none has this one."""
    name: str = row["filename"]
    is_of_windows = "\\" in name and not (folder / name).exists()
    if not is_of_windows and _file(folder, name):
        return
    spellings = [PurePosixPath(name.strip().replace("\\", "/")).as_posix()]
    spellings += [unicodedata.normalize(form, spelling) for spelling in spellings for form in ("NFC", "NFD")]
    if Path(name).is_absolute() and Path(name).is_relative_to(folder.absolute()):
        spellings.append(Path(name).relative_to(folder.absolute()).as_posix())
    found = next((spelling for spelling in spellings if spelling != name and _file(folder, spelling)), None)
    if found:
        row["filename"] = found
        yield f"filename: {name} is now {found}, as the file is spelled"


def _mend_size(row: dict[str, Any], folder: Path) -> Iterator[str]:
    path = _file(folder, row["filename"])
    if not path:
        return
    try:
        width, height = shown_size(path)
    except ImageError:
        return
    recorded = (row.get("width"), row.get("height"))
    if recorded != (width, height):
        row["width"], row["height"] = width, height
        was = "missing" if recorded == (None, None) else "{} x {}".format(*recorded)
        yield f"size: {was} is now {width} x {height}"


def _file(folder: Path, name: str) -> Path | None:
    try:
        return find_image(folder, name)
    except (ImageError, OSError, ValueError):
        return None


def _drop_broken(rows: Rows, path: Path, changes: list[Change]) -> None:
    for problem in read_metadata(path).problems:
        changes.append(Change(problem.line, f"row taken out: {problem.reason}"))
        rows.pop(problem.line, None)


def _apply(rows: Rows, seen: Seen, options: FixOptions, changes: list[Change]) -> None:
    """Take out the rows that the lint of the mended file finds beyond mending, and copies."""
    dropped = {"missing_file", "damaged_file", *(["empty_caption"] if options.drop_empty else [])}
    copies = {"same_file", *(["alike"] if options.drop_near else [])}
    groups: dict[int, list[Finding]] = defaultdict(list)
    for finding in seen.report.findings:
        if finding.kind in dropped:
            _drop(rows, changes, finding.line, finding.message)
        elif finding.kind == "wrong_size":
            _correct(rows, changes, finding, seen)
        elif finding.kind in copies:
            groups[finding.group or 0].append(finding)
    for found in groups.values():
        left = [finding for finding in found if finding.line in rows]
        if found[0].kind == "alike":
            left.sort(key=lambda finding: (-_pixels(rows[finding.line]), finding.line))
        for finding in left[1:]:
            what = "looks like" if finding.kind == "alike" else "the same picture as"
            _drop(rows, changes, finding.line, f"{what} line {left[0].line}, which stays")


def _correct(rows: Rows, changes: list[Change], finding: Finding, seen: Seen) -> None:
    """The size of a picture at a URL: only the lint has seen it."""
    lines = seen.dataset.metadata.lines
    look = seen.looks[int((lines == finding.line).argmax())]
    row = rows.get(finding.line)
    if row and look.size:
        row["width"], row["height"] = look.size
        changes.append(Change(finding.line, f"size: {finding.message}; mended"))


def _pixels(row: dict[str, Any]) -> int:
    return int(row["width"] * row["height"])


def _drop(rows: Rows, changes: list[Change], line: int, reason: str) -> None:
    if rows.pop(line, None) is not None:
        changes.append(Change(line, f"row taken out: {reason}"))
