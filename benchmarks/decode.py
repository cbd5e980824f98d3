"""Decode 1600 x 1200 JPEGs to a 512 bucket, 1 core: time of Pillow with Lanczos over ours, 40 dB."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.timing import Measured, interleaved
from flowloom.data.images.decode import load_image

TARGET = 2.2
NUM_PICTURES = 8
GIVEN = (1600, 1200)
BUCKET = (576, 448)
"""Of those with an area of 512 x 512, the nearest in shape."""
QUALITY = 85
"""Gives files of about 430 kB."""
LEAST_PSNR = 40.0
"""Decibels, of the worst image."""


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Clouds with the spectrum of photographs, and discs with sharp edges."""
    width, height = size
    draw = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequencies[0, 0] = 1
    shared = np.fft.rfft2(draw.standard_normal((height, width)))
    planes = []
    for _ in range(3):
        mixed = 0.9 * shared + 0.3 * np.fft.rfft2(draw.standard_normal((height, width)))
        plane = np.fft.irfft2(mixed / frequencies**1.35, s=(height, width))
        planes.append((plane - plane.mean()) / plane.std())
    levels = np.stack(planes, -1) * 50 + 120
    rows, columns = np.mgrid[0:height, 0:width]
    for _ in range(25):
        y, x, radius = draw.integers(height), draw.integers(width), draw.integers(5, max(6, height // 6))
        levels[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] += draw.uniform(-60, 60, 3)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def jpeg(seed: int, size: tuple[int, int] = GIVEN) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    photo(seed, size).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """All of it decoded, then Lanczos: FLOW's way."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), BUCKET, Image.Resampling.LANCZOS))


def ours(data: bytes) -> NDArray[np.uint8]:
    """As the loader does."""
    return load_image(data, BUCKET, (255, 255, 255), max_megapixels=100)


def psnr(data: bytes) -> float:
    """Decibels of ours against Pillow's."""
    error = np.square(ours(data).astype(np.float64) - by_pillow(data)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def run() -> Measured:
    """Ratio of times over all images; correct if the worst of them has 40 dB."""
    files = [jpeg(seed) for seed in range(NUM_PICTURES)]
    worst = min(psnr(data) for data in files)
    our_seconds, their_seconds = interleaved(
        lambda: [ours(data) for data in files], lambda: [by_pillow(data) for data in files]
    )
    return Measured(
        ratio=their_seconds / our_seconds,
        target=TARGET,
        correct=worst >= LEAST_PSNR,
        detail={
            "our_images_per_s": NUM_PICTURES / our_seconds,
            "pillow_images_per_s": NUM_PICTURES / their_seconds,
            "worst_psnr_db": worst,
            "mean_file_kB": sum(map(len, files)) / NUM_PICTURES / 1000,
        },
    )
