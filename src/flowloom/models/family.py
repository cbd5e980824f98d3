"""A model family behind one protocol: files, network, encoders, conditioning, adapter names, sizes.

Nothing outside `models/` and `nn/` knows a family's name. A family is one module of `models/families/` with
an object called FAMILY; adding the module registers it. Neither this module nor a family's imports torch
before a network is opened, so that the server can ask which files a family needs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from flowloom.errors import WeightsError
from flowloom.models.adapters.names import LoraNames
from flowloom.models.architectures import AdapterBase, Architecture, Signature
from flowloom.models.costs import Activations, Flops
from flowloom.models.header import read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.weights import Assign, Weights
    from flowloom.nn.recompute import Recompute

AUTO = "auto"
DEFAULT = "chroma"
"""The family of FLOW's own key for the network, and of files that cannot be recognized."""

Conditioning = Mapping[str, "Tensor"]
"""Named tensors of one caption: `states` (T, C), and others that a family needs, such as `pooled` (C,).

With reference images also `references` (R, D), the packed latents of all of them in sequence, and
`reference_grids` (N, 2), the height and width of the latents of each, as integers.
"""
Grid = tuple[int, ...]
"""Size of the latents without channels, before they are packed into tokens: (height, width) of an image,
(frames, height, width) of a clip."""


class ModelSettings(Protocol):
    """The `model` section of a configuration, as far as a family reads it."""

    family: str
    path: str
    chroma_path: str
    vae_path: str
    t5_path: str
    t5_config_path: str
    t5_tokenizer_path: str
    t5_to_8bit: bool
    clip_path: str
    clip_tokenizer_path: str
    expert: Literal["auto", "high_noise", "low_noise"]
    text_encoder_path: str
    text_tokenizer_path: str

    @property
    def max_text_tokens(self) -> int:
        """Maximum length of a caption in tokens."""
        ...

    @property
    def network_path(self) -> Path:
        """The file or folder of the network."""
        ...


@dataclass(frozen=True)
class ModelFile:
    """A file or folder that a family needs, by its key in the configuration."""

    key: str
    """Without "model.": vae_path."""
    title: str
    """Its description for a message."""
    role: Literal["network", "latents", "text"]
    subfolder: str
    """Its place in a diffusers folder."""
    architectures: frozenset[str] = frozenset()
    """Kinds of weights that fit, see models/architectures.py; empty for files without weights."""


class Sizes(Protocol):
    """Sizes of a network, read from names and shapes; families add others."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def in_channels(self) -> int:
        """Width of an image token."""
        ...

    @property
    def text_width(self) -> int: ...


class Codec(Protocol):
    """Images to latents and back; frozen."""

    factor: int
    """Pixels per latent, on each side."""
    channels: int

    def encode(self, pixels: Tensor) -> Tensor: ...
    def encode_spread(self, pixels: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


class Conditioner(Protocol):
    """Captions to named tensors; frozen."""

    def count_tokens(self, captions: Sequence[str]) -> list[int]: ...
    def encode(
        self, captions: Sequence[str], max_length: int, *, is_trimmed: bool = True
    ) -> list[dict[str, Tensor]]: ...


class ClipDefaults(NamedTuple):
    """The clips of a family that trains on video."""

    frames_per_latent: int
    """Frames of each plane of latents after the first: clips have n * frames_per_latent + 1 frames."""
    num_frames: int
    """Frames of a clip, if the configuration does not set it."""
    fps: float
    """Frame rate of the clips, if the configuration does not set it."""


@dataclass(frozen=True)
class FamilyDefaults:
    """A family's values for keys that are not set, and its properties in estimates."""

    activations: Activations
    noise_level: Mapping[str, Any] = field(default_factory=lambda: {"kind": "flow"})
    """Density of noise levels while training, as `objective.noise_level` spells it."""
    text_length: int = 512
    """Maximum length of a caption in tokens."""
    longest_text: int | None = None
    """Tokens of a caption that the network has positions for; None: any number."""
    text_layers: int = 1
    """Layers of the text encoder whose states a text token holds, side by side."""
    lora_targets: tuple[str, ...] = ("double_blocks", "single_blocks")
    """Parts of the names of the layers that an adapter is put on."""
    always_trained: tuple[str, ...] = ("txt_in", "img_in", "final_layer")
    """Parts of the network that a rotation trains in addition to its blocks."""
    guidance: float = 0.0
    """Distilled guidance of previews and samples, in place of 0."""
    guidance_effect: str = ""
    """The effect of any other guidance, for a warning; empty: it is free to choose."""
    reference_size: Callable[[int, int, int], tuple[int, int]] | None = None
    """Width and height of a reference image as the network sees it, by its width, height and the resolution;
    None: the network does not edit images."""
    has_x0_networks: bool = False
    """Some of its networks predict the image instead of the velocity."""
    keeps_norms: bool = False
    """Classifier-free guidance keeps the norm that each token of the velocity has without it."""
    idle_layers: tuple[str, ...] = ()
    """Layers of the last block, with {} for its number, that the velocity does not depend on."""
    never_trained: Mapping[str, str] = field(default_factory=dict[str, str])
    """Parts that must not be trained, each with the reason."""
    clips: ClipDefaults | None = None
    """None: the family trains on images only. Otherwise an image is a clip of one frame."""


OpenEncoder = Callable[["torch.device", "torch.dtype"], "nn.Module"]


class ModelFamily(Protocol):
    """Everything that differs between families."""

    name: str
    title: str
    modalities: frozenset[str]
    network_types: frozenset[str]
    """Class names of its networks."""
    architectures: Mapping[str, Architecture]
    """Kinds of its networks."""
    signatures: tuple[Signature, ...]
    """Names of tensors that identify its networks, the most specific first."""
    pipelines: frozenset[str]
    """Class names of diffusers' pipelines."""
    files: tuple[ModelFile, ...]
    """The files that a configuration names, the network first."""
    conditioning: Mapping[str, str]
    """The tensors of a caption, each with its record kind in the cache."""
    factor: int
    """Pixels per latent, on each side."""
    patch: int
    """Latents per token, on each side."""
    rotated: Mapping[str, str]
    """Kinds of blocks as the checkpoint names them, in network order, each with FLOW's key for the number
    that a rotation trains."""
    names: LoraNames
    last_layer: str
    """The layer that makes the velocity, as the checkpoint names it; zero before training."""
    adapter_base: AdapterBase
    defaults: FamilyDefaults

    def notes(self, model: ModelSettings) -> list[str]:
        """Warnings about the files of `model`, for the user."""
        ...

    def predicts_x0(self, path: Path) -> bool:
        """True if the network's file says that it predicts the image instead of the velocity.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        ...

    def sizes(self, path: Path) -> Sizes: ...
    def open_weights(self, path: Path) -> Weights:
        """The network's tensors in `path` by the names of its parameters, not read yet."""
        ...

    def load_network(
        self, path: Path, device: torch.device, dtype: torch.dtype, assign: Assign | None = None
    ) -> nn.Module:
        """The network in `path`; `assign` puts its weights there, by default `assign_weights`."""
        ...

    def blocks(self, network: nn.Module) -> list[tuple[str, nn.Module]]:
        """Every block with its name, in order of execution."""
        ...

    def recompute(self, network: nn.Module, recompute: Recompute) -> None:
        """Let `recompute` run the network's blocks."""
        ...

    def load_codec(self, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> Codec: ...
    def load_conditioner(
        self, model: ModelSettings, device: torch.device, dtype: torch.dtype
    ) -> Conditioner: ...
    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        """The encoders' networks by the key of their file, to count parameters and check files."""
        ...

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        """The files and the settings that determine the encoding of a caption."""
        ...

    def text_length(self, num_tokens: int, max_length: int) -> int:
        """Text tokens that the network receives for a caption of `num_tokens` tokens."""
        ...

    def pack(self, latents: Tensor) -> Tensor:
        """Tokens (B, L, D) from latents (B, C, h, w)."""
        ...

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor: ...
    def predict(
        self,
        network: nn.Module,
        x: Tensor,
        noise_level: Tensor,
        texts: Sequence[Conditioning],
        grid: Grid,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The velocity noise - data of tokens `x` (B, L, D) at `noise_level` (B,) in [0, 1], like `x`.

        Args:
            guidance: (B,) of previews and samples; None while training.
        """
        ...

    def schedule(self, network: nn.Module, steps: int, num_tokens: int) -> list[float]:
        """Noise levels of a sampler, from 1 to 0."""
        ...

    def flops(self, sizes: Any, image_tokens: int, text_tokens: int) -> Flops: ...
    def noise_levels(self, model: ModelSettings) -> tuple[float, float]:
        """The lowest and the highest noise level that the network is used at."""
        ...


def expanded(names: Sequence[str], of_family: Sequence[str]) -> list[str]:
    """`names` of layers with the family's own in place of "auto"."""
    return [part for name in names for part in (of_family if name == AUTO else (name,))]


def idle(family: ModelFamily, names: Collection[str]) -> set[str]:
    """Those of `names`, of all layers or parameters of a network, that get no gradient."""
    found = set[str]()
    for pattern in family.defaults.idle_layers:
        start = pattern.partition("{}")[0]
        last = max(
            (int(name[len(start) :].split(".")[0]) for name in names if name.startswith(start)), default=0
        )
        found |= {name for name in names if f"{name}.".startswith(f"{pattern.format(last)}.")}
    return found


def has_autoencoder(family: ModelFamily) -> bool:
    """False if the network works on pixels."""
    return any(file.role == "latents" for file in family.files)


def image_tokens(family: ModelFamily, pixels: int) -> int:
    """Tokens of an image of `pixels` pixels."""
    return pixels // (family.factor * family.patch) ** 2


@cache
def families() -> dict[str, ModelFamily]:
    """Every family by name, the default one first."""
    import flowloom.models.families as package

    modules = [name for _, name, _ in pkgutil.iter_modules(package.__path__)]
    found = [importlib.import_module(f"{package.__name__}.{name}").FAMILY for name in modules]
    found.sort(key=lambda family: (family.name != DEFAULT, family.name))
    return {family.name: family for family in found}


def never_trained() -> dict[str, str]:
    """Parts that no family trains, each with the reason; a configuration is checked before its files are."""
    parts = (family.defaults.never_trained for family in families().values())
    return {part: reason for reasons in parts for part, reason in reasons.items()}


def family_for(model: ModelSettings) -> ModelFamily:
    """The family of the network that `model` names: as stated, or recognized by the file's header."""
    if model.family != AUTO:
        return families()[model.family]
    return detect(Path(model.path)) if model.path else families()[DEFAULT]


def detect(path: Path) -> ModelFamily:
    """The family of the network in a file, a folder of shards or a diffusers folder; else the default one."""
    part = path / "transformer" if (path / "transformer").is_dir() else path
    try:
        marks = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in _weights(part))
        return families()[_detect(part, marks)]
    except (OSError, WeightsError):
        return families()[DEFAULT]


@lru_cache(maxsize=64)
def _detect(path: Path, _marks: tuple[object, ...]) -> str:
    places = (item for file in _weights(path) for item in read_header(file).tensors.items())
    plain = {
        name.removeprefix("model.").removeprefix("diffusion_model."): place.shape for name, place in places
    }
    fitting = (
        family.name
        for family in families().values()
        if any(signature.fits(plain) for signature in family.signatures)
    )
    return next(fitting, DEFAULT)


def _weights(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def family_of(network: nn.Module) -> ModelFamily:
    """The family that `network` belongs to, by its class or the nearest one that it derives from."""
    of_class = {kind: family for family in families().values() for kind in family.network_types}
    return next(of_class[kind.__name__] for kind in type(network).__mro__ if kind.__name__ in of_class)
