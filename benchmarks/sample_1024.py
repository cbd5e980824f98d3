"""MFU of 20 guided sampling steps, 8.9B network, 1024 pixels (GPU)."""

from benchmarks.gpu import Work, measure
from benchmarks.timing import Measured


def run() -> Measured:
    """MFU, the share of the GPU's peak that does useful work."""
    return measure(Work("sample", 1024, batch_size=1), target=0.50)
