"""Estimate memory and disk space of a run of sd-scripts from the headers of its files.

Weights, gradients and optimizer states are counted; what depends on the size of images is not (NOT_COUNTED).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from flowloom.errors import WeightsError
from flowloom.models.header import INDEX, read_header, read_shards
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.files import arguments_of

NOT_COUNTED = (
    "activations, which grow with resolution and batch size; gradient_checkpointing keeps them small",
    "the encoding of images and captions at the start",
    "CUDA's own memory, and previews during training",
    "what network_args, optimizer_args and raw_arguments change",
)
Shapes = dict[str, tuple[int, ...]]
_NETWORK, _TEXT, _VAE = "network", "text encoders", "vae"
_PARTS = (
    (re.compile(r"^(first_stage_model|vae)[./]"), _VAE),
    (re.compile(r"^(cond_stage_model|conditioner|text_encoder\w*|text_encoders)[./]"), _TEXT),
)
"""Components of a complete checkpoint or a diffusers folder; the rest is the network."""
_ADAPTED = {
    "sd15": re.compile(r"transformer_blocks\.|\.proj_(in|out)\."),
    "sdxl": re.compile(r"transformer_blocks\.|\.proj_(in|out)\."),
    "sd3": re.compile(r"joint_blocks\."),
    "flux": re.compile(r"(double|single)_blocks\."),
    "chroma": re.compile(r"(double|single)_blocks\."),
    "lumina": re.compile(r"(^|\.)layers\.|refiner\.|final_layer\."),
}
"""Layers of the network that the family's own networks.* module adapts."""
_ADAPTED_TEXT = re.compile(r"self_attn\.|\.attn\.|\.mlp\.|SelfAttention\.|DenseReluDense\.")
_SWAPPED: dict[str, tuple[tuple[str, Callable[[int], int]], ...]] = {
    "sd3": ((r"joint_blocks\.(\d+)\.", lambda blocks: blocks),),
    "lumina": ((r"(?:^|\.)layers\.(\d+)\.", lambda blocks: blocks),),
    "flux": (
        (r"double_blocks\.(\d+)\.", lambda blocks: blocks // 2),
        (r"single_blocks\.(\d+)\.", lambda blocks: (blocks - blocks // 2) * 2),
    ),
}
_SWAPPED["chroma"] = _SWAPPED["flux"]
_STATES = {
    "adamw8bit": 2.0, "pagedadamw8bit": 2.0, "adam8bit": 2.0, "lion8bit": 1.0, "pagedlion8bit": 1.0,
    "sgdnesterov8bit": 1.0,
}  # fmt: skip
"""Bytes of optimizer state per trained parameter, for 8-bit optimizers."""
_COPIES = {
    "adamw": 2, "adam": 2, "pagedadamw": 2, "pagedadamw32bit": 2, "lion": 1, "sgdnesterov": 1,
    "adafactor": 0, "prodigy": 4, "dadaptation": 4, "dadaptadam": 4, "dadaptlion": 3,
}  # fmt: skip
"""Copies of the trained parameters that other optimizers keep, in the parameters' data type."""
_SAVED = {"float": 4, "fp16": 2, "bf16": 2}
TEXT_STATES = {
    "sdxl": 4 * (77 * 768 + 77 * 1280 + 1280),
    "sd3": 4 * (77 * 2048 + 256 * 4096 + 2048),
    "flux": 4 * (512 * 4096 + 768 + 512 * 3),
    "chroma": 4 * (512 * 4096 + 768 + 512 * 3),
    "lumina": 4 * 256 * 2304,
}
"""Bytes of a caption's encoding, in float32 as sd-scripts stores it next to the image."""
LATENT_BYTES = {"sd15": 4 * 4, "sdxl": 4 * 4}
"""Bytes per 8 x 8 pixels, in float32; other families have 16 channels."""


@dataclass(frozen=True)
class Weights:
    """Number of parameters by component."""

    parts: Counter[str]
    """Parameters of network, text encoders and VAE."""
    adapted: int
    """Rows and columns of the layers that an adapter of the network covers."""
    adapted_text: int
    blocks: Counter[str]
    """Parameters of each block that can be swapped to main memory, by the prefix of its name."""

    @classmethod
    def of(cls, config: KohyaConfig) -> Weights:
        """Read the headers of the files in `config.model`.

        Raises:
            WeightsError: one cannot be read without loading it.
        """
        model = config.model
        parts = Counter[str]()
        shapes = _shapes(Path(model.pretrained_model_name_or_path).expanduser())
        network: Shapes = {}
        text: Shapes = {}
        for name, shape in shapes.items():
            part = next((part for pattern, part in _PARTS if pattern.search(name)), _NETWORK)
            parts[part] += prod(shape)
            {_NETWORK: network, _TEXT: text}.get(part, {})[name] = shape
        for key, part in (("vae", _VAE), ("ae", _VAE), *((key, _TEXT) for key in _ENCODERS)):
            if value := getattr(model, key):
                own = _shapes(Path(value).expanduser())
                parts[part] = sum(map(prod, own.values())) + (parts[part] if part == _TEXT else 0)
                text |= own if part == _TEXT else {}
        adapted = _ADAPTED[config.family]
        return cls(parts, _sides(network, adapted), _sides(text, _ADAPTED_TEXT), _blocks(config, network))


_ENCODERS = ("clip_l", "clip_g", "t5xxl", "gemma2")


@dataclass(frozen=True)
class Footprint:
    """Memory and disk space of a run."""

    memory: dict[str, int]
    """Bytes on the device while a step runs, by part."""
    weights: int
    """Bytes of a checkpoint file."""
    state: int
    """Bytes of a state, which a resume needs."""
    is_known: bool
    """True if the size of the optimizer's states is known."""


def footprint(config: KohyaConfig, weights: Weights) -> Footprint:
    """The footprint of a run on one device."""
    values = arguments_of(config, Path())
    is_lora, is_half = config.method == "lora", values["mixed_precision"] != "no"
    computed = 2 if is_half else 4
    is_small = is_lora and bool(values.get("fp8_base"))
    trained, width = trained_parameters(config, weights, values)
    states, is_known = _states(config.training.optimizer_type, width)
    network = (weights.parts[_NETWORK] - _swapped(config, weights)) * (1 if is_small else computed)
    parts = {
        "network": network if is_lora else 0,
        "trained weights": trained * width,
        "gradients": trained * width,
        "optimizer": trained * states,
        "text encoders": 0 if _is_encoded_once(values) else _text_bytes(weights, is_small, computed),
        "vae": 0 if values.get("cache_latents") else weights.parts[_VAE] * _vae_width(values, computed),
    }
    saved = _SAVED.get(config.saving.save_precision or "", width)
    # Whole checkpoints of SD and SDXL are written with their encoders.
    whole = sum(weights.parts.values()) if config.family in ("sd15", "sdxl") else weights.parts[_NETWORK]
    return Footprint(
        {name: int(size) for name, size in parts.items() if size},
        (trained if is_lora else whole) * saved,
        int(trained * (width + states)),
        is_known,
    )


def trained_parameters(config: KohyaConfig, weights: Weights, values: dict[str, Any]) -> tuple[int, int]:
    """Number of parameters, and bytes of each."""
    width = 2 if values.get("full_bf16") else 4
    if config.method == "full":
        return weights.parts[_NETWORK], width
    if has_unknown_size(config):
        return 0, width
    sides = weights.adapted + (0 if values.get("network_train_unet_only") else weights.adapted_text)
    return sides * config.network.network_dim, width


UNKNOWN_SIZE = "the size of this LyCORIS algorithm does not follow from its rank."
_RANKED = frozenset({"lora", "locon"})
"""Algorithms of LyCORIS whose layers are as large as those of a LoRA."""


def has_unknown_size(config: KohyaConfig) -> bool:
    """True if the adapter's size is unknown: LoKr's rank of 10000 means full matrices, not a rank."""
    network = config.network
    if config.method == "full" or network.network_module != "lycoris.kohya":
        return False
    pairs = (word.partition("=") for word in network.network_args)
    return any(name.strip() == "algo" and value.strip().lower() not in _RANKED for name, _, value in pairs)


def kept_files(config: KohyaConfig, steps: int, epochs: int = 0) -> int:
    """The maximum number of checkpoints that a run of `steps` and `epochs` keeps, including the last."""
    saving = config.saving
    by_steps = _kept(steps, saving.save_every_n_steps, saving.save_last_n_steps)
    return by_steps + _kept(epochs, saving.save_every_n_epochs, saving.save_last_n_epochs) + 1


def kept_states(config: KohyaConfig, steps: int, epochs: int = 0) -> int:
    """The maximum number of states kept at a time; 0 if none are saved."""
    saving = config.saving
    by_steps = _kept(
        steps, saving.save_every_n_steps, saving.save_last_n_steps_state or saving.save_last_n_steps
    )
    by_epochs = _kept(epochs, saving.save_every_n_epochs, saving.save_last_n_epochs)
    return by_steps + by_epochs + 1 if saving.save_state else 0


def _kept(count: int, every: int | None, last: int | None) -> int:
    if not every:
        return 0
    written = count // every
    # An old one is deleted only after a new one is written.
    return min(written, last // every + 2 if last else written)


def _states(optimizer: str, width: int) -> tuple[float, bool]:
    """Bytes of optimizer state per parameter, and True if they are known; otherwise AdamW's."""
    name = optimizer.rpartition(".")[2].lower()
    return _STATES.get(name, _COPIES.get(name, 2) * width), name in _STATES.keys() | _COPIES.keys()


def _is_encoded_once(values: dict[str, Any]) -> bool:
    return bool(values.get("cache_text_encoder_outputs") or values.get("cache_text_encoder_outputs_to_disk"))


def _text_bytes(weights: Weights, is_small: bool, computed: int) -> int:
    return weights.parts[_TEXT] * (1 if is_small else computed)


def _vae_width(values: dict[str, Any], computed: int) -> int:
    return 4 if values.get("no_half_vae") else computed


def _swapped(config: KohyaConfig, weights: Weights) -> int:
    """Parameters that are swapped to main memory."""
    blocks = config.memory.blocks_to_swap or 0
    found = 0
    for pattern, share in _SWAPPED.get(config.family, ()):
        sizes = [size for name, size in weights.blocks.items() if re.search(pattern, f"{name}.")]
        found += sum(sizes) * min(share(blocks), len(sizes)) // max(len(sizes), 1)
    return found


def _blocks(config: KohyaConfig, network: Shapes) -> Counter[str]:
    found = Counter[str]()
    for pattern, _ in _SWAPPED.get(config.family, ()):
        compiled = re.compile(pattern)
        for name, shape in network.items():
            if block := compiled.search(name):
                found[block[0].strip(".")] += prod(shape)
    return found


def _sides(shapes: Shapes, pattern: re.Pattern[str]) -> int:
    """Inputs and outputs of all matrices with matching names, including 1x1 convolutions."""
    found = 0
    for name, shape in shapes.items():
        is_matrix = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
        if is_matrix and pattern.search(name):
            found += shape[0] + shape[1]
    return found


def _shapes(path: Path) -> Shapes:
    """Names and shapes in a file, a folder of shards, or a diffusers folder, its folders before the names.

    Raises:
        WeightsError: it cannot be read without loading it.
    """
    if path.is_file():
        return {name: place.shape for name, place in read_header(path).tensors.items()}
    found = dict(_of_folder(path))
    for folder in sorted(one for one in path.iterdir() if one.is_dir()):
        found |= {f"{folder.name}/{name}": shape for name, shape in _of_folder(folder)}
    if not found:
        raise WeightsError(f"{path}: holds no safetensors, whose sizes stand at their beginning.")
    return found


def _of_folder(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The weights of a folder: those of an index, or the file with the shortest name, not a variant."""
    indexes = sorted(path.glob(f"*.safetensors{INDEX}"), key=lambda one: (len(one.name), one.name))
    files = sorted(path.glob("*.safetensors"), key=lambda one: (len(one.name), one.name))
    if not indexes and not files:
        return
    header = read_shards(indexes[0])[0] if indexes else read_header(files[0])
    yield from ((name, place.shape) for name, place in header.tensors.items())
