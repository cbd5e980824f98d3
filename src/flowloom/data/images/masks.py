"""Loss masks: the alpha channel of an image, or an image in a folder of masks."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from flowloom.data.dataset import DatasetSource
from flowloom.data.images.decode import load_alpha, load_image
from flowloom.data.metadata import Row
from flowloom.errors import ImageError
from flowloom.storage.local import find_image

RATIO_TOLERANCE = 0.02
"""A mask whose aspect ratio differs by more from its image's would be cropped differently."""


def load_mask(
    source: DatasetSource, row: Row, image: bytes | Path | None, size: tuple[int, int], max_megapixels: float
) -> NDArray[np.uint8]:
    """The mask (h, w) of `row`, cropped like its image: 255 for full weight, at least `unmasked_weight`.

    Args:
        image: not needed for masks in a folder.

    Raises:
        ImageError: the mask is missing, not an image, of another shape, or black everywhere.
    """
    if source.mask == "alpha":
        assert image is not None
        mask = load_alpha(image, size, max_megapixels)
    else:
        mask = _from_folder(source.mask_folder, row, size, max_megapixels)
    mask = np.maximum(mask, np.uint8(round(255 * source.unmasked_weight)))
    if not mask.any():
        raise ImageError("its mask is black everywhere, so no part of the image would be trained")
    return mask


def _from_folder(folder: Path, row: Row, size: tuple[int, int], max_megapixels: float) -> NDArray[np.uint8]:
    name = PurePosixPath(urlsplit(row.filename).path).name if row.is_url_based else row.filename
    try:
        path = find_image(folder, name)
        with Image.open(path) as image:
            ratio = image.width / image.height
    except ImageError as error:
        raise ImageError(f"no mask: {error}") from error
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f"the mask is not readable as an image: {error}") from error
    if abs(ratio * row.height / row.width - 1) > RATIO_TOLERANCE:
        raise ImageError(f"the mask {path.name} has another aspect ratio than the image")
    levels = load_image(path, size, (0, 0, 0), max_megapixels)
    return levels.mean(axis=2).round().astype(np.uint8)
