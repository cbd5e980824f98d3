"""Images as tensors, as torchvision's own do it."""

import numpy
import torch


class Compose:
    """One after the other."""

    def __init__(self, parts):
        self.parts = parts

    def __call__(self, value):
        for part in self.parts:
            value = part(value)
        return value


class ToTensor:
    """Bytes (H, W, 3) to floats in [0, 1], (3, H, W)."""

    def __call__(self, picture):
        return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous().float() / 255


class Normalize:
    """Mean 0, deviation 1."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, value):
        return (value - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]
