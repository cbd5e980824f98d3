"""A real WD14 tagger of a few hundred bytes: its ONNX file is written here, field by field."""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

FLOAT, FLOATS_ARE_RAW, INT, INTS = 1, 9, 2, 7


class Label(NamedTuple):
    """An output of the tagger: sigmoid(weights . mean + bias), where `mean` is the image's, 0 to 1."""

    name: str
    category: int
    blue: float = 0.0
    green: float = 0.0
    red: float = 0.0
    bias: float = 0.0


LABELS = (
    Label("general", 9, bias=2.0),
    Label("sensitive", 9, bias=-2.0),
    Label("blue_theme", 0, blue=12, bias=-6),
    Label("green_theme", 0, green=12, bias=-6),
    Label("red_theme", 0, red=12, bias=-6),
    Label("^_^", 0, bias=1.0),
    Label("long_hair", 0, bias=0.5),
    Label("1girl", 0, bias=0.2),
    Label("never_seen", 0, bias=-5),
    Label("fox_(forest_story)", 4, red=10, bias=-6),
    Label("wolf_(forest_story)", 4, bias=-1),
)
"""Characters: the fox is sure (0.98) in red images; the wolf has 0.27 in all."""


def write_tagger(
    folder: Path, labels: Sequence[Label] = LABELS, side: int = 16, batch: int | str = "N"
) -> Path:
    """Write model.onnx and selected_tags.csv to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model(labels, side, batch))
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag_id", "name", "category", "count"])
        writer.writerows([i, label.name, label.category, 1000 - i] for i, label in enumerate(labels))
    return folder


def model(labels: Sequence[Label], side: int, batch: int | str) -> bytes:
    """ModelProto: images (N, side, side, 3), 0 to 255, to their mean, to probabilities."""
    # As in the real ones, levels come as 0 to 255: the weights bring them to 0 to 1.
    channels = [[label.blue / 255 for label in labels], [label.green / 255 for label in labels],
                [label.red / 255 for label in labels]]  # fmt: skip
    weights = [value for channel in channels for value in channel]
    axes = text(1, "axes") + packed(8, [1, 2]) + number(20, INTS)
    keep = text(1, "keepdims") + number(3, 0) + number(20, INT)
    nodes = [
        node("ReduceMean", ["input"], ["mean"], [axes, keep]),
        node("Gemm", ["mean", "weights", "bias"], ["logits"], []),
        node("Sigmoid", ["logits"], ["output"], []),
    ]
    graph = b"".join(part(1, one) for one in nodes) + text(2, "tagger")
    graph += part(5, tensor("weights", [3, len(labels)], weights))
    graph += part(5, tensor("bias", [len(labels)], [label.bias for label in labels]))
    graph += part(11, value("input", [batch, side, side, 3])) + part(
        12, value("output", [batch, len(labels)])
    )
    return number(1, 8) + part(7, graph) + part(8, text(1, "") + number(2, 13))


def node(kind: str, inputs: Iterable[str], outputs: Iterable[str], attributes: Iterable[bytes]) -> bytes:
    """NodeProto."""
    names = b"".join(text(1, name) for name in inputs) + b"".join(text(2, name) for name in outputs)
    return names + text(4, kind) + b"".join(part(5, attribute) for attribute in attributes)


def tensor(name: str, shape: Sequence[int], values: Sequence[float]) -> bytes:
    """TensorProto of float32."""
    raw = struct.pack(f"<{len(values)}f", *values)
    return packed(1, shape) + number(2, FLOAT) + text(8, name) + part(FLOATS_ARE_RAW, raw)


def value(name: str, shape: Sequence[int | str]) -> bytes:
    """ValueInfoProto of float32."""
    sides = (number(1, side) if isinstance(side, int) else text(2, side) for side in shape)
    dimensions = b"".join(part(1, side) for side in sides)
    return text(1, name) + part(2, part(1, number(1, FLOAT) + part(2, dimensions)))


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def number(field: int, value: int) -> bytes:
    """A field that is a number."""
    return varint(field << 3) + varint(value)


def part(field: int, content: bytes) -> bytes:
    """A field with a length: a message, a text, bytes."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, content: str) -> bytes:
    """A field that is a text."""
    return part(field, content.encode())


def packed(field: int, values: Iterable[int]) -> bytes:
    """A field that is several numbers."""
    return part(field, b"".join(varint(value) for value in values))
