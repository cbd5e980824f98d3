"""Full step of the 8.9B network, streamed, in 24 GB, 1024 pixels: resident step over ours, in time (GPU)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from benchmarks.gpu import Work, random_network, training_step
from benchmarks.streamed_lora import TOLERANCE, capped, measured_step, on_host
from benchmarks.timing import Measured
from flowloom.nn.chroma import CHROMA1

RESIDENT = Work("full", 1024, batch_size=1, recompute="all", is_fused=True)
STREAMED = replace(RESIDENT, is_streamed=True)
TARGET = 0.2
"""The update of 8.9 billion weights on a CPU takes most of the time."""


def run() -> Measured:
    """The resident step's seconds over ours; correct when the losses before the first update are equal."""
    if not torch.cuda.is_available():
        return Measured(ratio=None, target=TARGET, correct=True, detail={"skipped": "no accelerator"})
    device = torch.device("cuda")
    resident_s, resident_loss, resident_mib = measured_step(
        lambda: training_step(RESIDENT, random_network(CHROMA1, device), device)
    )
    with capped(device):
        step = partial(training_step, STREAMED)
        streamed_s, streamed_loss, streamed_mib = measured_step(lambda: step(on_host(), device))
    return Measured(
        ratio=resident_s / streamed_s,
        target=TARGET,
        correct=abs(streamed_loss - resident_loss) <= TOLERANCE * abs(resident_loss),
        detail={
            "resident_s": resident_s, "streamed_s": streamed_s,
            "resident_mib": resident_mib, "streamed_mib": streamed_mib,
        },
    )  # fmt: skip
