"""A network with random weights, its training step and MFU, for the GPU benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks.timing import Measured
from flowloom.config.run import RunConfig
from flowloom.engine.estimate.memory_plan import Machine, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.memory import free_bytes
from flowloom.engine.objective import LatentBatch, Objective
from flowloom.engine.offload.streaming import stream_blocks
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.state import Network, Precision, TrainState
from flowloom.engine.step import train_step
from flowloom.flow_matching.noise_level import flow_quantile
from flowloom.flow_matching.samplers import SAMPLERS, schedule
from flowloom.models.adapters.adapter import Adapter, attach
from flowloom.models.families.chroma import FAMILY
from flowloom.nn.chroma import CHROMA1, Chroma, ChromaParams
from flowloom.nn.recompute import Recompute

DENSE_BF16_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "RTX 4090": 165.2}
"""Peaks that vendors state, without sparsity. The first name that is part of the device's name counts."""
TEXT_TOKENS = 65
"""A caption of 64 tokens and the one padding token that takes part."""


@dataclass(frozen=True)
class Work:
    """One measured step."""

    method: str
    """lora, full or sample."""
    pixels: int
    batch_size: int
    recompute: Literal["auto", "all"] = "auto"
    """Blocks that recompute their activations: as few as fit, or all."""
    text_tokens: int = TEXT_TOKENS
    is_streamed: bool = False
    """All blocks stay in host memory; the model is there before the first step. Full weights are updated
    there too."""
    is_fused: bool = False
    """Each weight is updated as soon as its gradient exists."""

    @property
    def image_tokens(self) -> int:
        """Tokens of a square image: one for 16 x 16 pixels."""
        return (self.pixels // 16) ** 2


def measure(work: Work, target: float) -> Measured:
    """MFU of `work` on the accelerator at hand; without one, nothing is measured and the detail says so."""
    if not torch.cuda.is_available():
        return Measured(ratio=None, target=target, correct=True, detail={"skipped": "no accelerator"})
    device = torch.device("cuda")
    return mfu(work, target, random_network(CHROMA1, device), peak_flops(torch.cuda.get_device_name()))


def peak_flops(device_name: str) -> float:
    """The device's dense bf16 peak; of an unknown device, the speed of a large matrix product."""
    for part, tflops in DENSE_BF16_TFLOPS.items():
        if part in device_name:
            return tflops * 1e12
    side = 8192
    a = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    return 2 * side**3 / median_seconds(lambda: a @ a, repeats=10)


def random_network(params: ChromaParams, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Chroma:
    """A network whose weights are small normal numbers: as fast as a trained one."""
    with torch.device("meta"):
        model = Chroma(params)
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02)
    return model.requires_grad_(False)


def mfu(work: Work, target: float, model: Chroma, peak: float, repeats: int = 5) -> Measured:
    """Useful operations a second as a share of `peak`."""
    params = model.params
    device = model.img_in.weight.device
    step = _sample(work, model) if work.method == "sample" else training_step(work, model, device)
    check = step()
    seconds = median_seconds(step, repeats)
    per_sample = FAMILY.flops(params, work.image_tokens, work.text_tokens)
    useful = {
        "full": per_sample.full_training,
        "lora": per_sample.adapter_training,
        "sample": 2 * SAMPLER_STEPS * per_sample.forward,
    }[work.method]
    return Measured(
        ratio=useful * work.batch_size / seconds / peak,
        target=target,
        correct=bool(torch.isfinite(check)),
        detail={
            "samples_per_s": work.batch_size / seconds,
            "step_s": seconds,
            "peak_memory_mib": peak_memory_mib(),
            "batch_size": work.batch_size,
            "checkpointed_blocks": model.recompute.blocks,
            "tflops_per_sample": useful / 1e12,
            "peak_tflops": peak / 1e12,
        },
    )


SAMPLER_STEPS = 20
"""Each with two passes, for guidance."""


def _recomputed_blocks(
    config: RunConfig, model: Chroma, device: torch.device, adapter: Adapter | None
) -> int:
    """The number of blocks in the engine's plan for the memory that is free without the network."""
    sizes = [sum(weight.numel() for weight in block.parameters()) for _, block in model.blocks()]
    total = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in adapter.parameters.values()) if adapter else total
    networks = Networks(model.params, total, sizes, trained, autoencoder=0, text_encoder=0)
    held = sum(weight.nbytes for weight in model.parameters() if weight.device.type == device.type)
    return plan_memory(config, networks, Machine(device, free_bytes(device) + held)).choice.blocks


def training_step(work: Work, model: Chroma, device: torch.device) -> Callable[[], torch.Tensor]:
    """One optimizer update, as the engine makes it."""
    is_full = work.method == "full"
    optimizer = {"kind": "adamw_lowbit"} if is_full else {"kind": "adamw"}
    if is_full and work.is_streamed:
        optimizer = {"kind": "adamw_bf16", "device": "cpu"}
    data: dict[str, Any] = {"method": {"kind": work.method}, "optimizer": optimizer}
    data["training"] = {"train_minibatch": work.batch_size}
    data["dataloader"] = {"base_resolution": [work.pixels]}
    data["model"] = {"t5_max_length": 2 * work.text_tokens}
    data["memory"] = {"checkpointed_blocks": work.recompute, "checkpointed_parts": "block"}
    data["memory"] |= {"streamed_blocks": "all" if work.is_streamed else 0, "offload_activations": False}
    data["memory"]["fused_backward"] = work.is_fused
    config = RunConfig(**data)
    adapter = (
        attach(model, "lora", 16, 16, ["double_blocks", "single_blocks"]) if work.method == "lora" else None
    )
    dtype = model.img_in.weight.dtype
    model.recompute = Recompute(_recomputed_blocks(config, model, device, adapter))
    precision = Precision(device, dtype, torch.float32 if adapter else dtype)
    streamer = (
        stream_blocks(model, [block for _, block in model.blocks()], device) if work.is_streamed else None
    )
    if streamer:
        streamer.streams_trained = is_full
    network = Network(model, adapter, streamer)
    state = TrainState(config, network, Objective(flow_quantile), precision, Ranks())
    batch = random_batch(work, model.params, device)
    return lambda: train_step(state, batch).loss


def _sample(work: Work, model: Chroma) -> Callable[[], torch.Tensor]:
    """The whole path from noise to latents, guided at every step."""
    weight = model.img_in.weight
    batch = random_batch(work, model.params, weight.device)
    precision = Precision(weight.device, weight.dtype, weight.dtype)
    levels = schedule(SAMPLER_STEPS, work.image_tokens)

    def velocity(x: torch.Tensor, level: float) -> torch.Tensor:
        noise_level = torch.full((len(x),), level, device=x.device)
        passes = [FAMILY.predict(model, x, noise_level, batch.texts, batch.grid) for _ in range(2)]
        return passes[0] + 4 * (passes[1] - passes[0])

    @torch.no_grad()
    def draw() -> torch.Tensor:
        with precision.autocast():
            return SAMPLERS["euler"](velocity, batch.noise, levels).sum()

    return draw


def random_batch(work: Work, params: ChromaParams, device: torch.device) -> LatentBatch:
    """Inputs of the right shapes, made from a fixed seed."""
    cpu = torch.Generator().manual_seed(0)
    shape = (work.batch_size, work.image_tokens, params.in_channels)
    text = torch.randn(work.batch_size, work.text_tokens, params.context_in_dim, generator=cpu)
    side = work.pixels // 8
    return LatentBatch(
        latents=torch.randn(shape, generator=cpu).to(device),
        noise=torch.randn(shape, generator=cpu).to(device),
        noise_level=flow_quantile(torch.rand(work.batch_size, generator=cpu)).to(device),
        texts=[{"states": states} for states in text.to(device)],
        text_lengths=[work.text_tokens] * work.batch_size,
        is_captioned=torch.ones(work.batch_size, dtype=torch.bool, device=device),
        loss_weight=torch.ones(work.batch_size, device=device),
        grid=(side, side),
    )


def median_seconds(step: Callable[[], object], repeats: int) -> float:
    """Median time of `step` after one warm-up, waiting for the device each time."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def peak_memory_mib() -> float:
    """Peak of the allocated device memory."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
