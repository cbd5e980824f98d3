"""Find similar images: a difference hash of 128 bits, and all near pairs without comparing all pairs.

A dHash contains for each cell of a coarse grid if its neighbour is brighter (N. Krawetz, 2013). It ignores
size, compression and brightness. It also ignores colour, so the pairs it finds are compared in colour, too.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

SIDE = 72
"""Images are hashed from 72 x 72 pixels: a grid of 9 x 8 and one of 8 x 9 divide them evenly."""
MAX_BITS = 8
"""Bits of 128 in which similar images may differ."""
MAX_COLOUR = 12.0
"""Maximum mean difference of the 8 x 8 colours, of 255, of similar images."""
MAX_ASPECT = 1.05
"""Maximum ratio of the aspect ratios of similar images."""
WINDOW = 2000
"""Images with one value of a band of which all pairs are compared; of more, neighbours in sorted order."""
_CLEAR = 1.5
"""Minimum difference in grey levels, so that flat areas have no noise bits."""


class Fingerprint(NamedTuple):
    """The 208 bytes by which images are compared."""

    bits: NDArray[np.uint64]
    """(2,): brightness from left to right, and from top to bottom."""
    colours: NDArray[np.uint8]
    """(192,): the image in 8 x 8 pixels."""


def fingerprint(pixels: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of `pixels` (72, 72, 3)."""
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    across = np.diff(grey.reshape(8, 9, 9, 8).mean(axis=(1, 3)), axis=1) > _CLEAR
    down = np.diff(grey.reshape(9, 8, 8, 9).mean(axis=(1, 3)), axis=0) > _CLEAR
    bits = np.packbits(np.stack([across.ravel(), down.ravel()]), axis=1).view(">u8")[:, 0]
    colours = pixels.reshape(8, 9, 8, 9, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return Fingerprint(bits.astype(np.uint64), colours.ravel())


class DuplicateGroups(NamedTuple):
    """Groups of similar images."""

    labels: NDArray[np.int64]
    """(N,): the group of each image; similarity is transitive within a group."""
    num_crowded: int
    """Images that share a band with more than WINDOW others, so that not all pairs were compared."""


def group_near_duplicates(
    bits: NDArray[np.uint64],
    colours: NDArray[np.uint8],
    aspects: NDArray[np.float64],
    max_bits: int = MAX_BITS,
) -> DuplicateGroups:
    """The groups of similar images.

    The bits are cut into `max_bits` + 1 bands. Two hashes that differ in at most `max_bits` bits have a band
    in common, so only images with an equal band are compared. This is exact, and nearly linear, as long as
    no band is crowded.

    Args:
        bits: (N, 2).
        colours: (N, 192).
        aspects: (N,) width / height.
    """
    from scipy.sparse import coo_array, csgraph

    count = len(bits)
    if not count:
        return DuplicateGroups(np.zeros(0, np.int64), 0)
    # Equal fingerprints, which are frequent among plain images, are searched once.
    keys = np.concatenate([bits.view(np.uint8).reshape(count, 16), colours], axis=1)
    keys = np.concatenate([keys, aspects.astype(np.float64).view(np.uint8).reshape(count, 8)], axis=1)
    _, first, group_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    left, right, is_crowded = _near_pairs(bits[first], max_bits)
    is_similar = _have_same_colours(colours[first], aspects[first], left, right)
    left, right = left[is_similar], right[is_similar]
    links = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(first), len(first)))
    components = cast("tuple[int, NDArray[np.int32]]", csgraph.connected_components(links, directed=False))
    group_of = group_of.ravel()
    return DuplicateGroups(components[1][group_of].astype(np.int64), int(is_crowded[group_of].sum()))


def _near_pairs(
    bits: NDArray[np.uint64], max_bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Pairs of rows of `bits` that differ in at most `max_bits` bits, possibly repeated; and a mask of rows
    that were not compared with all rows of a band."""
    is_crowded = np.zeros(len(bits), bool)
    single = np.unpackbits(bits.astype(">u8").view(np.uint8).reshape(len(bits), 16), axis=1)
    lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for band in np.array_split(np.arange(128), max_bits + 1):
        keys = single[:, band] @ (1 << np.arange(len(band)))
        _, value, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        is_crowded |= sizes[value.ravel()] > WINDOW
        # Sorted by the whole hash within a value of the band, so that similar images are adjacent.
        order = np.lexsort((bits[:, 1], bits[:, 0], keys))
        keys = keys[order]
        at = np.arange(len(keys) - 1)
        for shift in range(1, min(WINDOW, len(keys))):
            at = at[at + shift < len(keys)]
            # Keys are sorted: if a key differs from a later one, it differs from all after that.
            at = at[keys[at] == keys[at + shift]]
            if not len(at):
                break
            first, second = order[at], order[at + shift]
            near = np.bitwise_count(bits[first] ^ bits[second]).sum(axis=1) <= max_bits
            lefts.append(first[near])
            rights.append(second[near])
    return np.concatenate(lefts), np.concatenate(rights), is_crowded


def _have_same_colours(
    colours: NDArray[np.uint8],
    aspects: NDArray[np.float64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """True for each pair of images with about the same colours and aspect ratio."""
    same_shape = np.abs(np.log(aspects[left] / aspects[right])) <= np.log(MAX_ASPECT)
    agree = np.zeros(len(left), bool)
    for start in range(0, len(left), 2**16):
        part = slice(start, start + 2**16)
        apart = colours[left[part]].astype(np.int16) - colours[right[part]]
        agree[part] = np.abs(apart).mean(axis=1) <= MAX_COLOUR
    return agree & same_shape
