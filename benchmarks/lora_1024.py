"""MFU of a LoRA step, 8.9B network, 1024 pixels, 2 pictures (GPU)."""

from benchmarks.gpu import Work, measure
from benchmarks.timing import Measured


def run() -> Measured:
    """MFU, the share of the GPU's peak that does useful work."""
    return measure(Work("lora", 1024, batch_size=2), target=0.42)
