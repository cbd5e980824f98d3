"""Random numbers as a function of their purpose, so that a resumed run draws the same ones."""

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose: `generator(seed, "noise", row, showing)`.

    Nothing in a run touches torch's global stream, so there is no generator state to save: every
    draw can be repeated from its key alone. Drawing on the CPU gives every device the same numbers.
    """
    key = repr((seed, *purpose)).encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return torch.Generator().manual_seed(number >> 1)
