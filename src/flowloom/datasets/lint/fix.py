"""`flowloom dataset fix`: write a repaired copy of the JSONL; the original and its images are kept."""

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
from flowloom.datasets.lint.captions import repaired_text
from flowloom.datasets.lint.check import LintedDataset, LintOptions, lint
from flowloom.datasets.lint.images import displayed_size
from flowloom.datasets.lint.report import Finding
from flowloom.errors import DataError, ImageError
from flowloom.json_types import is_array
from flowloom.storage.local import find_image

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class FixOptions:
    """Options of a fix."""

    lint: LintOptions
    drop_near: bool = False
    """Keep only the largest of each group of near duplicates."""
    drop_empty: bool = False
    """Remove rows without a caption."""


@dataclass(frozen=True)
class RowChange:
    """A change of one line."""

    line: int
    action: str


@dataclass
class FixReport:
    """The result of a fix."""

    path: Path
    changes: list[RowChange]
    num_read: int
    num_written: int


Rows = dict[int, dict[str, Any]]
"""The fields of each row by the number of its line."""


def fix(options: FixOptions, out: Path) -> FixReport:
    """Write the repaired rows of the dataset of `options` to `out`.

    Wrongly decoded text is decoded again, fields get their types, names are matched with files, and sizes
    are read from the files. Then rows that cannot be repaired and duplicates are removed.

    Raises:
        DataError: `out` exists, the JSONL is missing, or no usable row is left.
    """
    config = options.lint.config
    source = Path(config.dataloader.jsonl_metadata_path)
    if out.exists():
        raise DataError(f"{out}: exists already. Choose a new file; none is overwritten.")
    if not source.is_file():
        raise DataError(f"{source}: no such file.")
    changes: list[RowChange] = []
    rows = _read(source, changes)
    num_read = len(rows)
    folder = Path(config.dataloader.image_folder_path)
    for line, row in rows.items():
        changes += (RowChange(line, action) for action in _repair(row, folder, options.lint.with_images))
    partial = out.with_name(f"{out.name}.partial")
    try:
        _write(partial, rows)
        data = config.dataloader.model_copy(update={"jsonl_metadata_path": str(partial)})
        lint_options = replace(options.lint, config=config.model_copy(update={"dataloader": data}))
        _drop_broken(rows, partial, changes)
        _apply(rows, lint(lint_options), options, changes)
        if not rows:
            raise DataError(f"{source}: none of {num_read} rows is usable: nothing was written.")
        partial.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows.values()))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    changes.sort(key=lambda change: change.line)
    return FixReport(out, changes, num_read, len(rows))


def _write(path: Path, rows: Rows) -> None:
    """Write each row to its original line, so that line numbers stay valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    last = max(rows, default=0)
    lines = (orjson.dumps(rows[line]) if line in rows else b"" for line in range(1, last + 1))
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def _read(path: Path, changes: list[RowChange]) -> Rows:
    """The rows that are JSON objects, in any encoding."""
    rows: Rows = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text, note = _decoded(line)
            if not text.strip():
                continue
            row = parse(text.encode())
            if isinstance(row, BadRow) and not row.fields:
                changes.append(RowChange(number, f"row removed: {row.reason}"))
                continue
            if note:
                changes.append(RowChange(number, note))
            rows[number] = row.fields
    return rows


def _decoded(line: bytes) -> tuple[str, str]:
    """The text of a line, and a note on its encoding."""
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


def _repair(row: dict[str, Any], folder: Path, with_images: bool) -> Iterator[str]:
    """Repair the fields of `row`; yields a note for each change."""
    for key in ("filename", "caption_or_tags"):
        value = row.get(key)
        if is_array(value) and key == "caption_or_tags" and all(isinstance(tag, str) for tag in value):
            row[key] = ", ".join(value)
            yield f"{key}: a list of {len(value)} tags, joined by commas"
        if isinstance(value, str) and repaired_text(value) != value:
            row[key] = repaired_text(value)
            yield f"{key}: {value:.60} is now {row[key]:.60}"
    for key in ("is_tag_based", "is_url_based"):
        yield from _repair_flag(row, key)
    yield from _repair_weight(row)
    if isinstance(row.get("filename"), str) and not row.get("is_url_based"):
        yield from _repair_name(row, folder)
        if with_images:
            yield from _repair_size(row, folder)


def _repair_flag(row: dict[str, Any], key: str) -> Iterator[str]:
    value = row.get(key)
    word = str(value).strip().lower()
    if value is None or isinstance(value, bool) or word not in TRUE + FALSE:
        return
    row[key] = word in TRUE
    yield f"{key}: {value!r} is now {str(row[key]).lower()}"


def _repair_weight(row: dict[str, Any]) -> Iterator[str]:
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


def _repair_name(row: dict[str, Any], folder: Path) -> Iterator[str]:
    """Correct the spelling of the file name if only a file of that spelling exists."""
    name: str = row["filename"]
    is_windows_path = "\\" in name and not (folder / name).exists()
    if not is_windows_path and _file(folder, name):
        return
    spellings = [PurePosixPath(name.strip().replace("\\", "/")).as_posix()]
    spellings += [unicodedata.normalize(form, spelling) for spelling in spellings for form in ("NFC", "NFD")]
    if Path(name).is_absolute() and Path(name).is_relative_to(folder.absolute()):
        spellings.append(Path(name).relative_to(folder.absolute()).as_posix())
    matching = (spelling for spelling in spellings if spelling != name and _file(folder, spelling))
    if spelling := next(matching, None):
        row["filename"] = spelling
        yield f"filename: {name} is now {spelling}, the spelling of the file"


def _repair_size(row: dict[str, Any], folder: Path) -> Iterator[str]:
    path = _file(folder, row["filename"])
    if not path:
        return
    try:
        width, height = displayed_size(path)
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


def _drop_broken(rows: Rows, path: Path, changes: list[RowChange]) -> None:
    for problem in read_metadata(path).problems:
        changes.append(RowChange(problem.line, f"row removed: {problem.reason}"))
        rows.pop(problem.line, None)


def _apply(rows: Rows, result: LintedDataset, options: FixOptions, changes: list[RowChange]) -> None:
    """Remove duplicates, and rows that the lint of the repaired file still finds broken."""
    dropped = {"missing_file", "damaged_file", *(["empty_caption"] if options.drop_empty else [])}
    duplicates = {"duplicate", *(["near_duplicate"] if options.drop_near else [])}
    groups: dict[int, list[Finding]] = defaultdict(list)
    for finding in result.report.findings:
        if finding.kind in dropped:
            _drop(rows, changes, finding.line, finding.message)
        elif finding.kind == "wrong_size":
            _correct(rows, changes, finding, result)
        elif finding.kind in duplicates:
            groups[finding.group or 0].append(finding)
    for group in groups.values():
        left = [finding for finding in group if finding.line in rows]
        if group[0].kind == "near_duplicate":
            left.sort(key=lambda finding: (-_pixels(rows[finding.line]), finding.line))
        for finding in left[1:]:
            relation = "similar to" if finding.kind == "near_duplicate" else "the same image as"
            _drop(rows, changes, finding.line, f"{relation} line {left[0].line}, which is kept")


def _correct(rows: Rows, changes: list[RowChange], finding: Finding, result: LintedDataset) -> None:
    """Correct the size of an image at a URL, which only the lint has downloaded."""
    lines = result.dataset.metadata.lines
    check = result.checks[int((lines == finding.line).argmax())]
    row = rows.get(finding.line)
    if row and check.size:
        row["width"], row["height"] = check.size
        changes.append(RowChange(finding.line, f"size: {finding.message}; corrected"))


def _pixels(row: dict[str, Any]) -> int:
    return int(row["width"] * row["height"])


def _drop(rows: Rows, changes: list[RowChange], line: int, reason: str) -> None:
    if rows.pop(line, None) is not None:
        changes.append(RowChange(line, f"row removed: {reason}"))
