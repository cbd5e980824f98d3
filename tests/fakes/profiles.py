"""ICC profiles (ICC.1:2001), as small as they can be, with a content that cannot be guessed."""

from __future__ import annotations

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
"""The primaries in XYZ, adapted to D50."""


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def _curve(levels: np.ndarray) -> bytes:
    return b"curv" + struct.pack(">II", 0, len(levels)) + (levels * 65535).round().astype(">u2").tobytes()


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"a test\0"
    described = b"desc" + struct.pack(">II", 0, len(text)) + text + bytes(78)
    tags = {b"desc": described, b"cprt": b"text" + bytes(4) + text, b"wtpt": _xyz(D50)} | tags
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x02100000, kind, space, connection)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*D50)
    return head.ljust(128, b"\0") + table + body


def matrix_profile(*, bgr: bool = False) -> bytes:
    """sRGB; with `bgr` red and blue have changed places."""
    levels = np.linspace(0, 1, 1024)
    curve = _curve(np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4))
    primaries = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), (SRGB[::-1] if bgr else SRGB), strict=True))
    tags = {name: _xyz(values) for name, values in primaries.items()}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey_profile(gamma: float) -> bytes:
    """Grey of this gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(np.linspace(0, 1, 256) ** gamma)})


def cmyk_profile(black: float) -> bytes:
    """No ink is white, full black ink has this L*; other inks count for nothing."""
    inks = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), -1).reshape(-1, 4)
    lightness = 100 - (100 - black) * inks[:, 3]
    lab = np.stack([lightness / 100 * 0xFF, np.full(16, 0x80), np.full(16, 0x80)], -1)
    table = lab.round().astype(np.uint8).tobytes()
    identity = bytes(range(256))
    data = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": data + identity * 4 + table + identity * 3})
