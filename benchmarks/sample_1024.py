"""20 guided sampling steps of the 8.9B network at 1024 pixels: MFU (GPU)."""

from benchmarks.gpu import Work, measure
from benchmarks.timing import Measured


def run() -> Measured:
    """MFU, the share of the GPU's peak that does useful work."""
    return measure(Work("sample", 1024, batch_size=1), target=0.50)
