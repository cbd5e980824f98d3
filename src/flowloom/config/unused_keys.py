"""Keys that are set but have no effect, because another key turns their feature off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.models.family import families, family_for, has_autoencoder

TRAINING = "training.change_layer_every training.trained_single_blocks training.trained_double_blocks"
ROTATION = f"{TRAINING} method.rotation_states method.always_trained"


@dataclass(frozen=True)
class Idle:
    """Keys, separated by spaces, that have no effect if `is_off` returns True."""

    keys: str
    is_off: Callable[[RunConfig], bool]
    reason: str
    """`{method}` is replaced by the method."""


IDLE: tuple[Idle, ...] = (
    Idle("lora", lambda c: c.method_kind not in ADAPTERS, "with method {method}"),
    Idle(ROTATION, lambda c: c.method_kind != "rotation", "with method {method}"),
    Idle("training.trained_layer_keywords", lambda c: c.method_kind != "keywords", "with method {method}"),
    Idle("method.base_products", lambda c: c.method_kind not in ADAPTERS, "with method {method}"),
    Idle(
        "memory.offload_param_count",
        lambda c: c.memory.streamed_blocks != "auto",
        "unless memory.streamed_blocks is auto",
    ),
    Idle("cache.quantized_gib", lambda c: not _is_quantized(c), "without lora.base_model_quant_level"),
    Idle("method.lokr_factor", lambda c: c.method_kind != "lokr", "with method {method}"),
    Idle("ema.device preview.weights", lambda c: c.ema.decay is None, "without ema.decay"),
    Idle(
        "cache.limit_mib",
        lambda c: "memory" not in (c.cache.latents, c.cache.text),
        "unless cache.latents or cache.text is memory",
    ),
    Idle(
        "cache.dir cache.limit_gib cache.mirror_gib cache.dtype",
        lambda c: not c.cache.is_on_disk,
        "unless cache.latents or cache.text is disk",
    ),
    Idle(
        "cache.mirror_gib",
        lambda c: c.cache.is_on_disk and "://" not in c.cache.dir,
        "unless cache.dir is in an object store",
    ),
    Idle(
        "cache.latents cache.sampling",
        lambda c: not has_autoencoder(family_for(c.model)),
        "without an autoencoder: the network works on pixels, which are read from the images",
    ),
    Idle("cache.caption_variants", lambda c: c.cache.text != "disk", "unless cache.text is disk"),
    Idle(
        "validation.every validation.max_rows validation.quantiles",
        lambda c: not c.validation.share,
        "while validation.share is 0",
    ),
    Idle(
        "preview.sampler preview.batch_caption preview.weights preview.format preview.max_batch "
        "preview.clip_format",
        lambda c: not c.previews,
        "without an inference section",
    ),
    Idle(
        "video.num_frames video.fps preview.clip_format model.expert",
        lambda c: family_for(c.model).defaults.clips is None,
        "with a model of images",
    ),
    Idle("lr_schedule.decay_share", lambda c: c.lr_schedule.kind != "wsd", "unless lr_schedule.kind is wsd"),
    Idle("lr_schedule.min_ratio", lambda c: c.lr_schedule.kind == "constant", "with a constant rate"),
    Idle("objective.huber_delta", lambda c: c.objective.loss != "huber", "unless objective.loss is huber"),
    Idle("storage.cache_gib", lambda c: not c.storage.cache_dir, "without storage.cache_dir"),
    Idle("hub.private", lambda c: not c.hub.repo_id, "without hub.repo_id"),
    Idle("mirror.bandwidth_mib mirror.seconds_to_finish", lambda c: not c.mirror.url, "without mirror.url"),
    Idle(
        "dataloader.tag_drop_percentage",
        lambda c: not c.dataloader.shuffle_tags,
        "while dataloader.shuffle_tags is off",
    ),
    Idle("dataloader.thread_per_worker", lambda c: not c.dataloader.num_workers, "without num_workers"),
    Idle(
        "dataloader.batch_size batching.sizes",
        lambda c: c.batching.batch_tokens is not None,
        "with batching.batch_tokens",
    ),
)


def _is_quantized(config: RunConfig) -> bool:
    is_adapter = config.method_kind in ADAPTERS
    return is_adapter and config.lora is not None and config.lora.base_model_quant_level != "full"


def idle_keys(config: RunConfig) -> Iterator[str]:
    """A line per reason, with the keys of `config` that are set and have no effect."""
    defaults = RunConfig()
    method = config.method_kind
    named: set[str] = set()
    for idle in IDLE:
        if not idle.is_off(config):
            continue
        keys = [key for key in idle.keys.split() if _value(config, key) != _value(defaults, key)]
        keys = [key for key in keys if key not in named]
        named.update(keys)
        if keys:
            yield f"{', '.join(keys)}: no effect {idle.reason.format(method=method)}."
    yield from _of_model(config)
    yield from _of_datasets(config)
    yield from _of_previews(config)


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _of_model(config: RunConfig) -> Iterator[str]:
    """Files of encoders that only other families have, and T5's storage."""
    family = family_for(config.model)
    used = {file.key for file in family.files}
    others = {file.key for other in families().values() for file in other.files if file.role != "network"}
    keys = [key for key in sorted(others - used) if getattr(config.model, key)]
    if config.model.t5_to_8bit and "t5_path" not in used:
        keys.append("t5_to_8bit")
    if keys:
        yield f"{', '.join(f'model.{key}' for key in keys)}: no effect with {family.title}."


def _of_datasets(config: RunConfig) -> Iterator[str]:
    weights = sum(bool(section.weight) for section in config.datasets)
    for i, section in enumerate(config.datasets):
        place = f"datasets.{i}"
        if section.weight and weights == 1:
            yield f"{place}.weight: no effect, because no other dataset has a weight."
        if section.is_regularisation and (section.weight or section.repeats):
            yield f"{place}.is_regularisation: no effect with repeats or a weight."
        if section.batch_size and config.batching.batch_tokens:
            yield f"{place}.batch_size: no effect with batching.batch_tokens."
        yield from _of_masks(place, section, is_used=not config.dataloader.dummy_image)
    is_used = bool(config.dataloader.jsonl_metadata_path or not config.datasets)
    yield from _of_masks("dataloader", config.dataloader, is_used and not config.dataloader.dummy_image)


def _of_masks(place: str, section: Any, is_used: bool) -> Iterator[str]:
    """Mask keys of `dataloader` or one of `datasets`."""
    if section.mask != "none" and not is_used:
        yield f"{place}.mask: no effect, because no image of this dataset is read."
    if section.mask_folder_path and section.mask != "folder":
        yield f"{place}.mask_folder_path: no effect unless {place}.mask is folder."
    if section.unmasked_weight and section.mask == "none":
        yield f"{place}.unmasked_weight: no effect while {place}.mask is none."


def _of_previews(config: RunConfig) -> Iterator[str]:
    takes_clips = family_for(config.model).defaults.clips is not None
    places = ["inference"] if config.inference else []
    places += [f"extra_inference_config.{i}" for i in range(len(config.extra_inference_config))]
    for place, section in zip(places, config.previews, strict=True):
        if section.first_n_steps_wo_cfg and section.cfg == 1:
            yield f"{place}.first_n_steps_wo_cfg: no effect while {place}.cfg is 1."
        if (section.num_frames or section.fps) and not takes_clips:
            yield f"{place}.num_frames, {place}.fps: no effect with a model of images."
