"""Requirements of a run: memory by part and disk by part, from sizes and formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.engine.build import choose_precision
from flowloom.engine.from_cache import META, encoder_keys, unless_cached
from flowloom.engine.memory import (
    HEADROOM,
    QUANTIZED_BYTES,
    activation_bytes,
    blocks_for_room,
    micro_batch_tokens,
    optimizer_bytes,
    streamed_blocks,
)
from flowloom.engine.offload.streaming import RING_SIZE
from flowloom.engine.trainable import trained_names
from flowloom.models.adapters.adapter import attach
from flowloom.models.device import encoder_dtype
from flowloom.models.family import Sizes, family_for
from flowloom.models.quantized import quantized_linears
from flowloom.run.preflight import Change


@dataclass(frozen=True)
class Networks:
    """Parameters by the part of the run that has them."""

    params: Sizes
    total: int
    block_sizes: Sequence[int]
    """Of each block's linear layers, which a quantized base holds in fewer bits; in order of execution."""
    trained: int
    autoencoder: int
    text_encoder: int

    @classmethod
    def from_config(cls, config: RunConfig) -> Networks:
        """The counts, from the headers of the files that `config.model` names.

        Raises:
            FlowloomError: one is missing, or nothing would be trained.
        """
        family, path = family_for(config.model), config.model.network_path
        network = family.load_network(path, META, torch.float32)
        return cls.from_modules(config, network, [unless_cached(config, key) for key in encoder_keys(config)])

    @classmethod
    def from_modules(
        cls, config: RunConfig, network: nn.Module, encoders: Sequence[nn.Module | None]
    ) -> Networks:
        """The counts of networks on the meta device; `network` is changed."""
        family = family_for(config.model)
        autoencoder, *text_encoders = (
            sum(weight.numel() for weight in encoder.parameters()) if encoder else 0 for encoder in encoders
        )
        linears = [(name, linear.weight.numel()) for name, linear in quantized_linears(network)]
        return cls(
            params=family.sizes(config.model.network_path),
            total=sum(weight.numel() for weight in network.parameters()),
            block_sizes=[
                sum(size for name, size in linears if name.startswith(f"{block}."))
                for block, _ in family.blocks(network)
            ],
            # Last, because an adapter wraps layers of the network.
            trained=count_trained(config, network),
            autoencoder=autoencoder,
            text_encoder=sum(text_encoders),
        )


def count_trained(config: RunConfig, network: nn.Module) -> int:
    """The number of parameters trained at a time; attaches an adapter to `network` to count them."""
    kind = config.method_kind
    if kind in ADAPTERS:
        assert config.lora is not None
        lora = config.lora
        adapter = attach(network, kind, lora.rank, lora.alpha, lora.target_layers, config.method.lokr_factor)
        return sum(weight.numel() for weight in adapter.parameters.values())
    weights = dict(network.named_parameters())
    return sum(weights[name].numel() for name in trained_names(config, list(weights), 0))


class Memory(NamedTuple):
    """Bytes on the device while a step runs."""

    parts: dict[str, int]
    recomputed: int
    """Blocks that recompute their activations."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())


def memory(config: RunConfig, networks: Networks, device: torch.device, capacity: int) -> Memory:
    """The memory that a step needs on `device`, of which `capacity` bytes are free before the run.

    Frozen weights, trained weights, gradients, the optimizer's moments, the EMA, encoders, activations.
    """
    precision = choose_precision(config, device)
    compute, trained_size = precision.compute.itemsize, precision.trained.itemsize
    is_adapter = config.method_kind in ADAPTERS
    frozen = networks.total if is_adapter else networks.total - networks.trained
    level = config.lora.base_model_quant_level if is_adapter and config.lora else "full"
    smaller = sum(networks.block_sizes) if level != "full" else 0
    bytes_per_weight = QUANTIZED_BYTES.get(level, compute)
    streamed, buffers = _streamed_bytes(config, networks, device, bytes_per_weight)
    encoder_size = 2 if device.type == "cuda" else 4
    text_size = 1 if config.model.t5_to_8bit else encoder_size
    has_ema = config.ema.decay is not None and (config.ema.device == "same" or device.type == "cpu")
    parts = {
        "frozen weights": (frozen - smaller) * compute + smaller * bytes_per_weight - streamed,
        "streaming buffers": buffers,
        "trained weights": networks.trained * trained_size,
        "gradients": networks.trained * trained_size,
        "optimizer": networks.trained * optimizer_bytes(config),
        "ema": networks.trained * 4 if has_ema else 0,
        "vae": 0 if _on_disk(config.cache.latents) else networks.autoencoder * encoder_size,
        "text encoder": 0 if _on_disk(config.cache.text) else networks.text_encoder * text_size,
    }
    room = HEADROOM * capacity - sum(parts.values())
    recomputed = blocks_for_room(config, networks.params, room, compute)
    tokens = micro_batch_tokens(config)
    parts["activations"] = activation_bytes(networks.params, tokens, recomputed, compute)
    return Memory({name: int(size) for name, size in parts.items() if size}, recomputed)


def _streamed_bytes(
    config: RunConfig, networks: Networks, device: torch.device, bytes_per_weight: float
) -> tuple[float, float]:
    """Bytes of the frozen weights in host memory, and of the device buffers that they pass through."""
    if not config.memory.streamed_blocks or device.type != "cuda":
        return 0, 0
    is_adapter = config.method_kind in ADAPTERS
    frozen = 1.0 if is_adapter else 1 - networks.trained / networks.total
    sizes = streamed_blocks(config.memory.streamed_blocks, networks.block_sizes)
    return sum(sizes) * frozen * bytes_per_weight, RING_SIZE * max(sizes) * bytes_per_weight


def _on_disk(kept: str) -> bool:
    """True if encoders are freed before training, because all of their output is on disk."""
    return kept == "disk"


@dataclass(frozen=True)
class _Saving:
    """A key whose value saves memory."""

    key: str
    value: Any
    applies: Callable[[RunConfig], bool]


def _savings(config: RunConfig) -> list[_Saving]:
    """Changes that save memory, those with the least cost in time and quality first."""
    smaller = max(config.dataloader.base_resolution) // 2 // 64 * 64
    return [
        _Saving(
            "memory.checkpointed_blocks", "all", lambda c: c.memory.checkpointed_blocks not in ("auto", "all")
        ),
        _Saving("model.t5_to_8bit", True, lambda c: not c.model.t5_to_8bit and not _on_disk(c.cache.text)),
        _Saving("ema.device", "cpu", lambda c: c.ema.decay is not None and c.ema.device == "same"),
        _Saving("training.train_minibatch", 1, lambda c: c.training.train_minibatch > 1),
        _Saving("optimizer.kind", "adamw8bit", lambda c: c.optimizer.kind in ("adamw", "adamw_bf16")),
        _Saving("parallel.dtype", "bf16", lambda c: c.parallel.dtype == "fp32"),
        _Saving("lora.base_model_quant_level", "8bit", lambda c: _base_level(c) == "full"),
        _Saving("memory.streamed_blocks", "all", _can_stream),
        _Saving("lora.base_model_quant_level", "4bit", _can_shrink),
        _Saving("optimizer.kind", "adamw_bf16", lambda c: _is_wide(c) and c.optimizer.kind == "adamw8bit"),
        _Saving("method.kind", "lora", lambda c: c.method_kind not in ADAPTERS),
        _Saving("lora.base_model_quant_level", "8bit", lambda c: _base_level(c) == "full"),
        _Saving(
            "dataloader.base_resolution",
            [smaller],
            lambda c: max(c.dataloader.base_resolution) > smaller >= 256,
        ),
    ]


def _can_stream(config: RunConfig) -> bool:
    return config.memory.streamed_blocks != "all" and config.method_kind != "full"


def _base_level(config: RunConfig) -> str | None:
    return config.lora.base_model_quant_level if config.lora and config.method_kind in ADAPTERS else None


def _can_shrink(config: RunConfig) -> bool:
    return _base_level(config) == "8bit" and config.method.base_products == "wide"


def _is_wide(config: RunConfig) -> bool:
    """True if most weights are trained, and in float32."""
    return config.method_kind == "full" and config.parallel.trained_dtype == "auto"


def advise(
    config: RunConfig, networks: Networks, device: torch.device, capacity: int
) -> tuple[list[Change], bool]:
    """Keys to change together, in this order, until the run fits; and True if it then does."""
    room = HEADROOM * capacity
    now = memory(config, networks, device, capacity).total
    changes: list[Change] = []
    for saving in _savings(config):
        if now <= room:
            break
        if not saving.applies(config):
            continue
        changed = with_key(config, saving.key, saving.value)
        if saving.key == "method.kind":
            networks = Networks.from_config(changed)
        then = memory(changed, networks, device, capacity).total
        if then < now:
            config, now = changed, then
            changes.append(Change(path=saving.key, value=saving.value, bytes=then))
    return changes, now <= room


def with_key(config: RunConfig, key: str, value: Any) -> RunConfig:
    """`config` with the value of one dotted key changed; a part's other settings go when its kind does."""
    section, name = key.split(".")
    given: dict[str, Any] = config.model_dump()
    kept: dict[str, Any] = {} if key == "optimizer.kind" else given.get(section) or {}
    return RunConfig.model_validate(given | {section: {**kept, name: value}})


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
    return {
        name: size * (formats.get(config.cache.dtype, encoded) if kept[name] == "disk" else encoded).itemsize
        for name, size in sizes.items()
        if kept[name] != "off"
    }
