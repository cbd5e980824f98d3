"""What sd-scripts uses of torchvision, for machines that have no build of it: see sd15.py."""

from torchvision import transforms

__all__ = ["transforms"]
