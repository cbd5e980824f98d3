"""LoRA step of the 8.9B network, 512 pixels, 8 images: MFU (GPU)."""

from benchmarks.gpu import Work, measure
from benchmarks.timing import Measured


def run() -> Measured:
    """MFU, the share of the GPU's peak that does useful work."""
    return measure(Work("lora", 512, batch_size=8), target=0.36)
