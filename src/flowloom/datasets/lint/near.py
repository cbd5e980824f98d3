"""Pictures that look alike: a difference hash of 128 bits, and all near pairs without comparing all pairs.

A dHash says of each cell of a coarse grid whether its neighbour is brighter (N. Krawetz, 2013). It forgets
size, compression and brightness; it also forgets colour, so that what it finds is compared in colour.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 72
"""Pictures are hashed from 72 x 72 pixels: a grid of 9 x 8 and one of 8 x 9 divide it evenly."""
MAX_BITS = 8
"""Of 128: pictures that differ in more are not alike."""
MAX_COLOUR = 12.0
"""Mean difference of the 8 x 8 colours, of 255, of pictures that are alike."""
MAX_ASPECT = 1.05
"""And how far their aspect ratios may differ."""
WINDOW = 2000
"""Of so many pictures with one value of a band, all pairs are compared; beyond it, neighbours in order."""
_CLEAR = 1.5
"""Grey levels; what is less bright than that by its neighbour is as bright: flat areas have no noise bits."""


class Fingerprint(NamedTuple):
    """What is kept of a picture to compare it by: 208 bytes."""

    bits: NDArray[np.uint64]
    """(2,): brightness from left to right, and from top to bottom."""
    colours: NDArray[np.uint8]
    """(192,): an 8 x 8 picture."""


def fingerprint(pixels: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of `pixels` (72, 72, 3)."""
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    across = np.diff(grey.reshape(8, 9, 9, 8).mean(axis=(1, 3)), axis=1) > _CLEAR
    down = np.diff(grey.reshape(9, 8, 8, 9).mean(axis=(1, 3)), axis=0) > _CLEAR
    bits = np.packbits(np.stack([across.ravel(), down.ravel()]), axis=1).view(">u8")[:, 0]
    colours = pixels.reshape(8, 9, 8, 9, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return Fingerprint(bits.astype(np.uint64), colours.ravel())


class Groups(NamedTuple):
    """Which pictures look alike."""

    labels: NDArray[np.int64]
    """(N,): pictures of one number look alike, directly or by way of others."""
    crowded: int
    """Pictures that share a band with more than WINDOW others: of those not all pairs were compared."""


def groups_alike(
    bits: NDArray[np.uint64],
    colours: NDArray[np.uint8],
    aspects: NDArray[np.float64],
    max_bits: int = MAX_BITS,
) -> Groups:
    """For each picture the number of its group.

    The bits are cut into `max_bits` + 1 bands. Two hashes that differ in `max_bits` bits or fewer have one
    band in common, so that only pictures with an equal band are compared: exact, and near to linear, as long
    as no band is crowded.

    Args:
        bits: (N, 2).
        colours: (N, 192).
        aspects: (N,) width / height.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(bits)
    if not count:
        return Groups(np.zeros(0, np.int64), 0)
    # Equal fingerprints, of which a set of plain pictures has many, are one to the search.
    whole = np.concatenate([bits.view(np.uint8).reshape(count, 16), colours], axis=1)
    whole = np.concatenate([whole, aspects.astype(np.float64).view(np.uint8).reshape(count, 8)], axis=1)
    _, first, twin_of = np.unique(whole, axis=0, return_index=True, return_inverse=True)
    left, right, is_crowded = _near_pairs(bits[first], max_bits)
    is_alike = _agree(colours[first], aspects[first], left, right)
    left, right = left[is_alike], right[is_alike]
    links = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(first), len(first)))
    _, labels = connected_components(links, directed=False)
    twin_of = twin_of.ravel()
    return Groups(labels[twin_of].astype(np.int64), int(is_crowded[twin_of].sum()))


def _near_pairs(
    bits: NDArray[np.uint64], max_bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Pairs of rows of `bits` that differ in at most `max_bits` bits, some of them named more than once; and
    which rows were not compared with all of a band."""
    is_crowded = np.zeros(len(bits), bool)
    single = np.unpackbits(bits.astype(">u8").view(np.uint8).reshape(len(bits), 16), axis=1)
    lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for band in np.array_split(np.arange(128), max_bits + 1):
        keys = single[:, band] @ (1 << np.arange(len(band)))
        _, place, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        is_crowded |= sizes[place.ravel()] > WINDOW
        # Within a band's value by the whole hash: what is alike lies together.
        order = np.lexsort((bits[:, 1], bits[:, 0], keys))
        keys = keys[order]
        at = np.arange(len(keys) - 1)
        for shift in range(1, min(WINDOW, len(keys))):
            at = at[at + shift < len(keys)]
            # Keys are in order: where one differs from the next but one, it differs from all after it.
            at = at[keys[at] == keys[at + shift]]
            if not len(at):
                break
            one, other = order[at], order[at + shift]
            near = np.bitwise_count(bits[one] ^ bits[other]).sum(axis=1) <= max_bits
            lefts.append(one[near])
            rights.append(other[near])
    return np.concatenate(lefts), np.concatenate(rights), is_crowded


def _agree(
    colours: NDArray[np.uint8],
    aspects: NDArray[np.float64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether the pictures of each pair have the same colours and shape."""
    same_shape = np.abs(np.log(aspects[left] / aspects[right])) <= np.log(MAX_ASPECT)
    agree = np.zeros(len(left), bool)
    for start in range(0, len(left), 2**16):
        part = slice(start, start + 2**16)
        apart = colours[left[part]].astype(np.int16) - colours[right[part]]
        agree[part] = np.abs(apart).mean(axis=1) <= MAX_COLOUR
    return agree & same_shape
