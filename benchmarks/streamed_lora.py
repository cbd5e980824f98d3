"""LoRA step of the 8.9B network, streamed, in 24 GB, 1024 pixels: time of RamTorch over ours (GPU)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import Work, median_seconds, peak_memory_mib, random_batch, random_network, training_step
from benchmarks.timing import Measured
from flowloom.models.families.chroma import FAMILY
from flowloom.nn.chroma import CHROMA1, Chroma
from flowloom.nn.recompute import Recompute

CARD_BYTES = 24e9
WORK = Work("lora", 1024, batch_size=1, recompute="all")
RANK, REPEATS, TOLERANCE = 16, 3, 2e-2


def run() -> Measured:
    """RamTorch's seconds over ours; correct when the streamed loss is the resident one."""
    if not torch.cuda.is_available():
        return Measured(ratio=None, target=1.0, correct=True, detail={"skipped": "no accelerator"})
    if importlib.util.find_spec("ramtorch") is None:
        return Measured(ratio=None, target=1.0, correct=True, detail={"skipped": "pip install ramtorch"})
    device = torch.device("cuda")
    resident_s, resident_loss, resident_mib = measured_step(partial(_resident, device))
    with capped(device):
        streamed_s, streamed_loss, streamed_mib = measured_step(partial(_streamed, device))
        ramtorch_s, _, ramtorch_mib = measured_step(partial(_ramtorch, device))
    return Measured(
        ratio=ramtorch_s / streamed_s,
        target=1.0,
        correct=abs(streamed_loss - resident_loss) <= TOLERANCE * abs(resident_loss),
        detail={
            "resident_s": resident_s, "streamed_s": streamed_s, "ramtorch_s": ramtorch_s,
            "resident_mib": resident_mib, "streamed_mib": streamed_mib, "ramtorch_mib": ramtorch_mib,
        },
    )  # fmt: skip


@contextmanager
def capped(device: torch.device) -> Iterator[None]:
    """Within it, allocations beyond `CARD_BYTES` fail, as on a card of that size."""
    torch.cuda.set_per_process_memory_fraction(CARD_BYTES / torch.cuda.mem_get_info(device)[1], device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def measured_step(make: Callable[[], Callable[[], Tensor]]) -> tuple[float, float, float]:
    """Median seconds of the step that `make` returns, its first loss, and the peak memory in MiB."""
    torch.manual_seed(0)
    step = make()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loss = float(step())
    return median_seconds(step, REPEATS), loss, peak_memory_mib()


def _resident(device: torch.device) -> Callable[[], Tensor]:
    return training_step(WORK, random_network(CHROMA1, device), device)


def on_host() -> Chroma:
    """The resident run's network in host memory; its random numbers are the device's."""
    return random_network(CHROMA1, torch.device("cuda")).to("cpu")


def _streamed(device: torch.device) -> Callable[[], Tensor]:
    return training_step(Work("lora", 1024, 1, "all", is_streamed=True), on_host(), device)


def _ramtorch(device: torch.device) -> Callable[[], Tensor]:
    """The same network with RamTorch's linear layers in its blocks, and low-rank updates beside them."""
    ramtorch: Any = importlib.import_module("ramtorch.helpers")
    model = on_host()
    trained: list[nn.Parameter] = []
    for _, block in model.blocks():
        for weight in block.parameters():
            weight.data = weight.data.pin_memory()
        ramtorch.replace_linear_with_ramtorch(block, device)
        for layer in block.modules():
            if getattr(layer, "is_ramtorch", False):
                trained += _low_rank(layer, device)
    model.to(device)
    model.recompute = Recompute(len(model.blocks()))
    optimizer = torch.optim.AdamW(trained, fused=True)
    batch = random_batch(WORK, CHROMA1, device)
    x = torch.lerp(batch.latents, batch.noise, batch.noise_level[:, None, None])

    def step() -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            velocity = FAMILY.predict(model, x, batch.noise_level, batch.texts, batch.grid)
        loss = nn.functional.mse_loss(velocity.float(), batch.noise - batch.latents)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _low_rank(layer: nn.Module, device: torch.device) -> list[nn.Parameter]:
    """Add B A x to the output of `layer`."""
    weight = layer.get_parameter("weight")
    down = nn.Parameter(torch.randn(RANK, weight.shape[1], device=device) * 0.01)
    up = nn.Parameter(torch.zeros(weight.shape[0], RANK, device=device))

    def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + nn.functional.linear(nn.functional.linear(inputs[0], down), up)

    layer.register_forward_hook(add)
    return [down, up]
