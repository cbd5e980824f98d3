"""Subjects of the encoders and their caches: images of rows, reference images, captions; no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from flowloom.data.buckets import Bucket
from flowloom.data.metadata import Row

ImageInBucket = tuple[int, Bucket]
"""A row, and the bucket that its image or clip is cropped to."""


class Reference(NamedTuple):
    """One of the images that the image of a row was edited from."""

    row: int
    number: int


class Instruction(NamedTuple):
    """A caption that is encoded together with the reference images of its row."""

    caption: str
    row: int
    num_references: int


Prompt = str | Instruction
"""A caption, alone or with reference images."""
Encoded = ImageInBucket | Reference
"""The subjects of the autoencoder."""


def file_of(row: Row, number: int) -> Row:
    """A row whose image is reference `number` of `row`, in the same folder or store."""
    return replace(row, filename=row.references[number], references=())


def prompt_of(row: Row, caption: str) -> Prompt:
    """`caption`, with the references of `row` if there are any."""
    return Instruction(caption, row.index, len(row.references)) if row.references else caption
