"""Untrained networks, detected by their last layer, which is zero before training."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from flowloom.models.family import families
from flowloom.models.header import Header

_MAX_BYTES = 2**26
_CHUNK_BYTES = 2**20


def is_untrained(path: Path, header: Header) -> bool:
    """True if the last layer in the safetensors file at `path`, with this header, has only zeros."""
    place = next((header.tensors[name] for name in _last_weights() if name in header.tensors), None)
    if place is None or not 0 < place.end - place.begin <= _MAX_BYTES:
        return False
    try:
        with path.open("rb") as file:
            file.seek(place.begin)
            left = place.end - place.begin
            while left:
                chunk = file.read(min(_CHUNK_BYTES, left))
                if not chunk or chunk.strip(b"\0"):
                    return False
                left -= len(chunk)
    except OSError:
        return False
    return True


@cache
def _last_weights() -> tuple[str, ...]:
    """Names of the last layer's weight in the files of any family."""
    layers = (
        spelling
        for family in families().values()
        for name in (family.last_layer,)
        for spelling in (name, f"model.diffusion_model.{name}", *family.names.checkpoint_parts(name))
    )
    return tuple(dict.fromkeys(f"{layer}.weight" for layer in layers))
