"""The networks of a run without their weights: parameters by part, from the headers of their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from flowloom.config.model_files import cached_files
from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.engine.trainable import adapted_layers, trained_names
from flowloom.errors import FlowloomError
from flowloom.models.adapters.adapter import attach
from flowloom.models.family import Sizes, family_for, has_autoencoder
from flowloom.models.quantized import quantized_linears

META = torch.device("meta")
"""Tensors here have a shape and no data, so networks of any size fit."""


def encoder_keys(config: RunConfig) -> list[str]:
    """The keys of the encoders' weights: model.vae_path ..."""
    return list(family_for(config.model).encoders(config.model))


def unless_cached(config: RunConfig, key: str) -> nn.Module | None:
    """The encoder at `key`, on the meta device; None if it cannot be opened and a cache may replace it.

    Raises:
        FlowloomError: it cannot be opened, and no cache may replace it.
    """
    try:
        return family_for(config.model).encoders(config.model)[key](META, torch.float32)
    except FlowloomError:
        if key not in cached_files(config):
            raise
        return None


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

    def shard(self, num_ranks: int) -> Networks:
        """The part of one of the ranks that the network's weights are sharded over."""
        return replace(self, total=-(-self.total // num_ranks), trained=-(-self.trained // num_ranks))

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
        counts = [
            sum(weight.numel() for weight in encoder.parameters()) if encoder else 0 for encoder in encoders
        ]
        if not has_autoencoder(family):
            counts.insert(0, 0)
        autoencoder, *text_encoders = counts
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
        adapter = attach(
            network, kind, lora.rank, lora.alpha, adapted_layers(config), config.method.lokr_factor
        )
        return sum(weight.numel() for weight in adapter.parameters.values())
    weights = dict(network.named_parameters())
    return sum(weights[name].numel() for name in trained_names(config, list(weights), 0))
