"""Requirements of a run: memory by part and disk by part, from sizes and formulas."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.memory import (
    QUANTIZED_BYTES,
    Choice,
    activation_bytes,
    input_bytes,
    optimizer_bytes,
    sample_tokens,
    streamed_blocks,
)
from flowloom.engine.offload.streaming import RING_SIZE
from flowloom.engine.state import choose_precision
from flowloom.models.device import encoder_dtype
from flowloom.models.family import Sizes, family_for, has_autoencoder

PARKED = "optimizer states of other rotations"
"""The part of host memory that grows with each rotation."""


def device_bytes(
    config: RunConfig, networks: Networks, device: torch.device, choice: Choice
) -> dict[str, int]:
    """The memory that a step needs on `device`, by part."""
    precision = choose_precision(config, device)
    compute, trained_size = precision.compute.itemsize, precision.trained.itemsize
    in_blocks, bytes_per_weight = _block_weights(config, networks, device)
    frozen = networks.total if config.method_kind in ADAPTERS else networks.total - networks.trained
    largest = max(streamed_blocks(choice.streamed, networks.block_sizes), default=0)
    encoder_size = 2 if device.type == "cuda" else 4
    text_size = 1 if config.model.t5_to_8bit else encoder_size
    has_ema = config.ema.decay is not None and not (_is_average_on_host(config) and device.type != "cpu")
    on_host = config.optimizer.device == "cpu" and device.type != "cpu"
    is_early = on_host or config.memory.fused_backward
    # Gradients that leave at once: those of two blocks, or fewer.
    gradients = min(networks.trained, 2 * max(networks.block_sizes)) if is_early else networks.trained
    parts = {
        "frozen weights": (frozen - in_blocks) * compute
        + in_blocks * bytes_per_weight
        - _streamed_frozen_bytes(config, networks, device, choice),
        "streaming buffers": RING_SIZE * largest * bytes_per_weight,
        "trained weights": networks.trained * trained_size
        - _streamed_trained_bytes(config, networks, device, choice),
        "gradients": gradients * trained_size,
        "optimizer": 0 if on_host else networks.trained * optimizer_bytes(config),
        "ema": networks.trained * 4 if has_ema else 0,
        "vae": 0 if _on_disk(config.cache.latents) else networks.autoencoder * encoder_size,
        "text encoder": 0 if _on_disk(config.cache.text) else networks.text_encoder * text_size,
        "activations": activation_bytes(
            family_for(config.model).defaults.activations,
            block_input_bytes(config, networks, device),
            networks.params.num_blocks,
            choice,
        ),
    }
    return {name: int(size) for name, size in parts.items() if size}


def host_bytes(config: RunConfig, networks: Networks, device: torch.device, choice: Choice) -> dict[str, int]:
    """The memory that a step needs on the host beside a `device` with separate memory, by part."""
    inputs = max(choice.blocks - 1, 0) * block_input_bytes(config, networks, device)
    is_parked = config.method_kind == "rotation" and config.method.rotation_states == "keep"
    has_ema = config.ema.decay is not None and _is_average_on_host(config)
    updated = networks.trained if config.optimizer.device == "cpu" else 0
    parts = {
        "streamed weights": streamed_bytes(config, networks, device, choice),
        "trained weights": updated * (2 if config.optimizer.kind == "adamw_bf16" else 4),
        "gradients": 0 if config.memory.fused_backward else updated * 4,
        "optimizer": updated * optimizer_bytes(config),
        "offloaded activations": inputs if choice.is_offloaded else 0,
        PARKED: networks.total * optimizer_bytes(config) if is_parked else 0,
        "ema": networks.trained * 4 if has_ema else 0,
    }
    return {name: int(size) for name, size in parts.items() if size}


def snapshot_bytes(config: RunConfig, networks: Networks, device: torch.device) -> int:
    """Host memory of the copy that a checkpoint is written from while training continues.

    Frozen weights are not copied. Without room for it training waits until the checkpoint is written.
    """
    is_adapter = config.method_kind in ADAPTERS
    if config.parallel.strategy != "fsdp" or is_adapter:
        # With copies of all trained weights on the host, another one would double its memory.
        is_on_host = config.optimizer.device == "cpu" and not is_adapter
        if is_on_host or not config.checkpoint.in_background:
            return 0
    average = 4 if config.ema.decay is not None else 0
    each = choose_precision(config, device).trained.itemsize + optimizer_bytes(config) + average
    return int(networks.trained * each)


def streamed_bytes(config: RunConfig, networks: Networks, device: torch.device, choice: Choice) -> float:
    """Bytes of the streamed weights in host memory."""
    return _streamed_frozen_bytes(config, networks, device, choice) + _streamed_trained_bytes(
        config, networks, device, choice
    )


def _streamed_frozen_bytes(
    config: RunConfig, networks: Networks, device: torch.device, choice: Choice
) -> float:
    in_blocks, bytes_per_weight = _block_weights(config, networks, device)
    return _streamed_share(networks, choice) * in_blocks * bytes_per_weight


def _streamed_trained_bytes(
    config: RunConfig, networks: Networks, device: torch.device, choice: Choice
) -> float:
    """Trained weights are streamed where a host optimizer updates them."""
    if config.method_kind in ADAPTERS or config.optimizer.device != "cpu":
        return 0
    in_blocks = networks.trained * sum(networks.block_sizes) / networks.total
    size = choose_precision(config, device).trained.itemsize
    return _streamed_share(networks, choice) * in_blocks * size


def _streamed_share(networks: Networks, choice: Choice) -> float:
    return sum(streamed_blocks(choice.streamed, networks.block_sizes)) / sum(networks.block_sizes)


def _is_average_on_host(config: RunConfig) -> bool:
    return config.ema.device == "cpu" or config.optimizer.device == "cpu"


def block_input_bytes(config: RunConfig, networks: Networks, device: torch.device) -> int:
    """Bytes of a block's input for a micro-batch."""
    tokens = config.training.train_minibatch * sum(sample_tokens(config))
    return input_bytes(networks.params, tokens, choose_precision(config, device).compute.itemsize)


def _block_weights(config: RunConfig, networks: Networks, device: torch.device) -> tuple[float, float]:
    """The number of frozen weights in the blocks' linear layers, and the bytes of each."""
    precision, size = choose_precision(config, device), sum(networks.block_sizes)
    compute = precision.compute.itemsize
    if config.method_kind in ADAPTERS:
        level = config.lora.base_model_quant_level if config.lora else "full"
        return size, QUANTIZED_BYTES.get(level, compute)
    is_kept = config.method_kind == "rotation" and config.method.rotation_states == "keep"
    # Blocks of earlier rotations stay in the number format that they were trained in.
    each = max(compute, precision.trained.itemsize) if is_kept else compute
    return size * (1 - networks.trained / networks.total), each


def _on_disk(kept: str) -> bool:
    """True if encoders are freed before training, because all of their output is on disk."""
    return kept == "disk"


def checkpoint_bytes(config: RunConfig, networks: Networks, device: torch.device) -> int:
    """One checkpoint: exported weights, finer ones for the resume, optimizer states, EMA."""
    precision = choose_precision(config, device)
    trained, compute, finer = networks.trained, precision.compute.itemsize, precision.trained.itemsize
    has_ema = config.ema.decay is not None
    states = trained * optimizer_bytes(config) + (trained * 4 if has_ema else 0)
    if config.method_kind in ADAPTERS:
        return int(trained * finer * (2 + has_ema) + states)
    weights = networks.total * compute * (1 + has_ema) + (trained * finer if finer != compute else 0)
    return int(weights + states)


def cache_bytes(
    config: RunConfig, params: Sizes, device: torch.device, pixels: int, text_tokens: int
) -> Mapping[str, int]:
    """Bytes of all latents and caption states, in the number formats of the cache.

    Args:
        pixels: of all rows in their buckets.
        text_tokens: of all distinct captions, with one padding token each.
    """
    formats = {"bf16": torch.bfloat16, "fp32": torch.float32}
    encoded = encoder_dtype(device)
    # Drawn latents are stored as mean and variance.
    numbers = 2 if config.cache.sampling == "draw" else 1
    family = family_for(config.model)
    latents = pixels // family.factor**2 * (params.in_channels // family.patch**2) * numbers
    sizes = {"latents": latents, "caption states": text_tokens * params.text_width}
    kept = {"latents": config.cache.latents, "caption states": config.cache.text}
    if not has_autoencoder(family):
        kept["latents"] = "off"
    return {
        name: size * (formats.get(config.cache.dtype, encoded) if kept[name] == "disk" else encoded).itemsize
        for name, size in sizes.items()
        if kept[name] != "off"
    }
