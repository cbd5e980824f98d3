"""Full fine-tuning step of the 8.9B network, fused backward, 1024 pixels, 4 images: MFU (GPU)."""

from benchmarks.gpu import Work, measure
from benchmarks.timing import Measured


def run() -> Measured:
    """MFU, the share of the GPU's peak that does useful work."""
    return measure(Work("full", 1024, batch_size=4, recompute="all", is_fused=True), target=0.38)
