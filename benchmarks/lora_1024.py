"""LoRA step of the 8.9B network, 1024 pixels, 2 images: MFU (GPU)."""

from benchmarks.gpu import Work, measure
from benchmarks.timing import Measured


def run() -> Measured:
    """MFU, the share of the GPU's peak that does useful work."""
    return measure(Work("lora", 1024, batch_size=2), target=0.42)
