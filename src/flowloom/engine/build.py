"""RunConfig to the objects of a run: the only place that connects them and translates FLOW's keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import nn

from flowloom.config.run import ADAPTERS, ModelSection, RunConfig
from flowloom.data.cache.encodings import PersistentCache
from flowloom.data.cache.setup import PLAIN, caption_rules, open_encoding_caches
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.loader import Dataset, Loader
from flowloom.data.references import reference_reader
from flowloom.datasets.load import load_dataset
from flowloom.engine.encode import Encoders
from flowloom.engine.estimate.memory_plan import MemoryPlan, shared_plan
from flowloom.engine.lazy import Lazy
from flowloom.engine.memory import streamed_blocks
from flowloom.engine.objective import Objective, density
from flowloom.engine.offload.activations import ActivationOffload
from flowloom.engine.offload.copies import copies_to
from flowloom.engine.offload.streaming import BlockStreamer, stream_blocks
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.preview import SampleGenerator, sampling_params
from flowloom.engine.state import Network, Precision, TrainState, choose_precision
from flowloom.engine.trainable import adapted_layers
from flowloom.errors import ConfigError, Problem
from flowloom.model_library.requirements import refuse_unfit_models
from flowloom.models.adapters.adapter import Adapter, attach
from flowloom.models.device import choose_device, encoder_dtype
from flowloom.models.family import Conditioning, family_for, family_of
from flowloom.models.quantized import QuantizedLoad, check_products, form_of, quantize_base
from flowloom.models.quantized_cache import QuantizedCache, default_folder
from flowloom.nn.recompute import Recompute
from flowloom.storage.base import OnState

T = TypeVar("T")


@dataclass
class Components:
    """Everything that the loop works with."""

    state: TrainState
    encoders: Encoders
    loader: Loader
    validation: Loader | None
    sample_generator: SampleGenerator
    images: ImageSource
    memory_plan: MemoryPlan


def load_encoders(
    model: ModelSection,
    config: RunConfig,
    device: torch.device,
    dataset: Dataset | None = None,
    images: ImageSource | None = None,
) -> Encoders:
    """The encoders that `model` names, opened now unless a cache on disk may replace them.

    Args:
        dataset: the images and captions of the cache; without it there is no cache.
    """
    dtype = encoder_dtype(device)
    family = family_for(model)
    autoencoder = Lazy(lambda: family.load_codec(model, device, dtype))
    text_encoder = Lazy(lambda: family.load_conditioner(model, device, dtype))
    caches = (
        open_encoding_caches(config, dataset, dtype, images=images)
        if dataset and config.cache.is_on_disk
        else None
    )
    reader = reference_reader(config, dataset, images or ImageSource(config.storage)) if dataset else None
    encoders = Encoders(autoencoder, text_encoder, config, device, caches, reader)
    if not isinstance(encoders.caches.latents, PersistentCache):
        autoencoder.get()
    if not encoders.caches.texts.on_disk:
        text_encoder.get()
    return encoders


def build(config: RunConfig, ranks: Ranks, on_state: OnState | None = None) -> Components:
    """Load and connect everything that `config` describes; `on_state` is called when a store goes down.

    Raises:
        ConfigError, WeightsError, DataError: something it names is missing or does not fit.
    """
    if config.parallel.num_threads:
        torch.set_num_threads(config.parallel.num_threads)
    device = choose_device(config.parallel.device)
    _refuse_offloads(config, device, ranks)
    check_products(config.method.base_products, device)
    refuse_unfit_models(config, "the configuration")
    for section in config.previews:
        sampling_params(section, config)
    precision = choose_precision(config, device)
    plan = shared_plan(config, device, ranks)
    dataset = load_dataset(config)
    images = ImageSource(config.storage, on_state)
    encoders = load_encoders(config.model, config, device, dataset, images)
    network = load_for_training(config, ranks, precision, plan.choice.streamed)
    state = TrainState(config, network, _objective(config, encoders, device), precision, ranks)
    _fit_to_memory(state, plan)
    return Components(
        state=state,
        encoders=encoders,
        loader=_training_loader(config, dataset, encoders, ranks, images),
        validation=_validation_loader(config, dataset, encoders, images),
        images=images,
        memory_plan=plan,
        sample_generator=SampleGenerator(
            network.model, encoders, precision, config.model.use_x0, state.sharers
        ),
    )


def _refuse_offloads(config: RunConfig, device: torch.device, ranks: Ranks) -> None:
    if config.memory.streamed_blocks not in ("auto", 0):
        copies_to(device)
    if config.memory.offload_activations is True:
        copies_to(device, "memory.offload_activations")
    if config.optimizer.device == "cpu":
        copies_to(device, "optimizer.device")
    if config.memory.fused_backward and ranks.size > 1:
        message = (
            f"cannot be used with {ranks.size} ranks, whose gradients are summed before an update: set it to "
            "false."
        )
        raise ConfigError("the configuration", [Problem("memory.fused_backward", message)])


def load_for_training(config: RunConfig, ranks: Ranks, precision: Precision, num_streamed: int) -> Network:
    """The network with its adapter if it trains one: whole, streamed, or sharded over the ranks."""
    attach = partial(_attach_adapter, config)
    strategy = config.parallel.strategy
    if strategy not in ("fsdp", "deepspeed") or ranks.size == 1:
        family, path = family_for(config.model), config.model.network_path
        assign = quantized_load(config, precision.device, num_streamed)
        load = partial(family.load_network, path, dtype=precision.compute, assign=assign)
        model, adapter, streamer = load_network(load, attach, precision.device, num_streamed)
        if streamer:
            streamer.streams_trained = config.optimizer.device == "cpu" and not adapter
        return Network(model, adapter, streamer)
    if strategy == "deepspeed":
        from flowloom.engine.parallel.deepspeed import zero_network

        model, adapter, shards = zero_network(config, ranks, precision, attach)
        return Network(model, adapter, shards=shards)
    from flowloom.engine.parallel.fsdp import shard_network

    model, adapter, shards = shard_network(config, ranks, precision, partial(_attach_over_bits, config))
    if adapter:
        adapter.find_parameters()  # sharded ones are in the place of those that it was made with
    return Network(model, adapter, shards=shards)


def load_network(
    load: Callable[[torch.device], nn.Module],
    attach: Callable[[nn.Module], T],
    device: torch.device,
    num_streamed: Literal["all"] | int,
) -> tuple[nn.Module, T, BlockStreamer | None]:
    """The network from `load` on `device`, what `attach` makes of it, and what streams its blocks, if any.

    The streamer has to `adopt` the weights once it is known which of them are trained.
    """
    # Through host memory: the device may have no room for the whole network.
    model = load(torch.device("cpu") if num_streamed else device)
    attached = attach(model)
    if not num_streamed:
        return model, attached, None
    blocks = streamed_blocks(num_streamed, [block for _, block in family_of(model).blocks(model)])
    return model, attached, stream_blocks(model, blocks, device)


def quantized_load(
    config: RunConfig, device: torch.device, num_streamed: Literal["all"] | int
) -> QuantizedLoad | None:
    """Loads the base of an adapter in 8 or 4 bits, if `config` asks for it.

    Raises:
        ConfigError: a package is missing.
    """
    if config.lora is None or config.method_kind not in ADAPTERS:
        return None
    # Streamed weights are quantized in host memory.
    at = torch.device("cpu") if num_streamed else device
    form = form_of(config.lora.base_model_quant_level, config.method.base_products, at)
    if form is None:
        return None
    most = int(config.cache.quantized_gib * 2**30)
    return QuantizedLoad(form, QuantizedCache(default_folder(), most) if most else None)


def _attach_over_bits(config: RunConfig, model: nn.Module) -> Adapter | None:
    """`_attach_adapter` on a network whose weights are views of the file, quantized first."""
    if config.lora and config.method_kind in ADAPTERS:
        quantize_base(model, config.lora.base_model_quant_level, config.method.base_products)
    return _attach_adapter(config, model)


def _attach_adapter(config: RunConfig, model: nn.Module) -> Adapter | None:
    kind = config.method_kind
    if kind not in ADAPTERS:
        return None
    assert config.lora is not None
    lora = config.lora
    with torch.random.fork_rng(devices=[]):
        # The packages draw an adapter's initial values from torch's global stream.
        torch.manual_seed(config.training.master_seed)
        return attach(model, kind, lora.rank, lora.alpha, adapted_layers(config), config.method.lokr_factor)


def _objective(config: RunConfig, encoders: Encoders, device: torch.device) -> Objective:
    strength = config.training.cfg_scale_strength
    spec = config.objective
    return Objective(
        quantile=density(config),
        huber_delta=spec.huber_delta if spec.loss == "huber" else None,
        predicts_x0=config.model.use_x0,
        cfg_strength=strength,
        union_mask=spec.mask_mode == "flow_union",
        empty_text=None if strength is None else _on(device, encoders.texts([""])[0]),
    )


def _on(device: torch.device, text: Conditioning) -> Conditioning:
    return {name: tensor.to(device) for name, tensor in text.items()}


def _fit_to_memory(state: TrainState, plan: MemoryPlan) -> None:
    choice, family = plan.choice, family_of(state.model)
    recompute = Recompute(choice.blocks, choice.ffn)
    if choice.is_offloaded:
        copies = copies_to(state.precision.device, "memory.offload_activations")
        recompute.keeping = ActivationOffload(copies).keeping
    family.recompute(state.model, recompute)
    if state.config.memory.compile:
        for _, block in family.blocks(state.model):
            # Static shapes would compile again for every bucket and caption length.
            # Of forward alone: what runs before a block, such as the wait for its weights, is not compiled.
            block.forward = torch.compile(block.forward, dynamic=True)


def _training_loader(
    config: RunConfig, dataset: Dataset, encoders: Encoders, ranks: Ranks, images: ImageSource
) -> Loader:
    data = config.dataloader
    return Loader(
        dataset=dataset.training,
        rules=caption_rules(config),
        seed=config.training.master_seed,
        rank=ranks.rank,
        world_size=ranks.size,
        batch_size=data.batch_size,
        threads=max(1, data.num_workers * data.thread_per_worker),
        prefetch=data.prefetch_factor,
        latents=encoders.caches.latents,
        references=encoders.reader,
        texts=encoders.caches.texts,
        images=images,
        updates_per_batch=config.training.updates_per_large_batch,
    )


def _validation_loader(
    config: RunConfig, dataset: Dataset, encoders: Encoders, images: ImageSource
) -> Loader | None:
    if not config.validation.share:
        return None
    return Loader(
        dataset=dataset.validation(config.validation.max_rows),
        rules=PLAIN,
        seed=config.training.master_seed,
        rank=0,
        world_size=1,
        batch_size=config.dataloader.batch_size,
        threads=max(1, config.dataloader.num_workers),
        prefetch=1,
        latents=encoders.caches.latents,
        references=encoders.reader,
        texts=encoders.caches.texts,
        images=images,
    )
