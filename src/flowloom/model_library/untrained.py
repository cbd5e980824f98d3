"""Untrained networks, detected by their last layer, which is zero before training."""

from __future__ import annotations

from pathlib import Path

from flowloom.models.header import Header

LAST_LAYERS = ("final_layer.linear.weight", "final_layer.linear.base_layer.weight")
"""In Chroma's names, with and without an adapter around it."""
_IN_FILES = (
    "final_layer.linear.weight",
    "model.diffusion_model.final_layer.linear.weight",
    "proj_out.weight",
)
_MOST_BYTES = 2**26
_CHUNK = 2**20


def is_untrained(path: Path, header: Header) -> bool:
    """True if the last layer in the safetensors file at `path`, with this header, has only zeros."""
    place = next((header.tensors[name] for name in _IN_FILES if name in header.tensors), None)
    if place is None or not 0 < place.end - place.begin <= _MOST_BYTES:
        return False
    try:
        with path.open("rb") as file:
            file.seek(place.begin)
            left = place.end - place.begin
            while left:
                chunk = file.read(min(_CHUNK, left))
                if not chunk or chunk.strip(b"\0"):
                    return False
                left -= len(chunk)
    except OSError:
        return False
    return True
