"""The parts of torchvision that sd-scripts uses, for machines that have no build of it: see sd15.py."""

from torchvision import transforms

__all__ = ["transforms"]
