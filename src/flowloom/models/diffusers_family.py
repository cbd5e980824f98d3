"""Base of the families whose network is diffusers': files, sizes, loading, blocks, recomputation.

A family states the class and the names, and converts sign, time, text and packing in `predict`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flowloom.errors import WeightsError
from flowloom.models.family import Grid, ModelSettings, OpenEncoder, Sizes
from flowloom.models.header import read_small_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.family import Codec
    from flowloom.models.weights import Assign, Weights
    from flowloom.nn.recompute import Recompute


class DiffusersFamily:
    """Parts of ModelFamily that follow from the class of the network in diffusers."""

    title: str
    network_types: frozenset[str]
    """The one class in diffusers."""
    modalities = frozenset({"image"})
    block_lists: tuple[str, ...]
    """Attributes of the network that hold its blocks, in order of execution."""
    feed_forwards: tuple[str, ...] = ("ff", "ff_context")
    """Attributes of a block that hold its feed-forward parts."""
    in_float32 = re.compile("(?!)")
    """Names of weights that stay in float32, as diffusers' from_pretrained keeps them; none by default."""
    has_causal_vae = False
    """The autoencoder is that of Wan 2.1."""
    factor, patch = 8, 2

    def notes(self, model: ModelSettings) -> list[str]:  # noqa: ARG002
        """No warnings about the files."""
        return []

    def predicts_x0(self, path: Path) -> bool:  # noqa: ARG002
        """False: none of these networks does."""
        return False

    def read_sizes(self, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Sizes:
        """The sizes of a network, whose fields are the arguments of the class in diffusers.

        Args:
            shapes: of its tensors, by diffusers' names.
            settings: of config.json beside them; empty for a single file.

        Raises:
            KeyError: a tensor is missing.
        """
        raise NotImplementedError

    def arguments(self, sizes: Any) -> dict[str, Any]:
        """Arguments of the network's class in diffusers; by default the fields of `sizes`."""
        return cast("dict[str, Any]", vars(sizes))

    def sizes(self, path: Path) -> Sizes:
        """Sizes of the network in `path`.

        Raises:
            WeightsError: it is not a network of this family.
        """
        weights = self.open_weights(path)
        folder = weights.path
        settings = read_small_json(folder / "config.json") if folder.is_dir() else {}
        try:
            return self.read_sizes(weights.shapes, settings)
        except KeyError as error:
            message = f"{path}: not a {self.title} network: it has no {error.args[0]}."
            raise WeightsError(message) from error

    def open_weights(self, path: Path) -> Weights:
        """The network's tensors in `path` by diffusers' names, not read yet."""
        from flowloom.models.weights import open_weights

        path = Path(path)
        path = path / "transformer" if (path / "model_index.json").is_file() else path
        return self.in_diffusers_names(open_weights(path).below("model.diffusion_model.", "diffusion_model."))

    def in_diffusers_names(self, weights: Weights) -> Weights:
        """`weights` of a file as released or as ComfyUI uses it by diffusers' names; others unchanged."""
        return weights

    def load_network(
        self, path: Path, device: torch.device, dtype: torch.dtype, assign: Assign | None = None
    ) -> nn.Module:
        """See ModelFamily."""
        import torch

        from flowloom.models.weights import assign_weights

        kind = self.network_class()
        with torch.device("meta"):
            network = kind(**self.arguments(self.sizes(path)))
        for place, module in self.tables(network).items():
            network.set_submodule(place, module.to(device))
        weights = self.open_weights(path)
        (assign or assign_weights)(network, weights, device, dtype)
        self._widen(network, weights)
        return network

    def _widen(self, network: nn.Module, weights: Weights) -> None:
        """Read the weights of `in_float32` again, not rounded."""
        import torch
        from torch import nn

        from flowloom.models.weights import read_onto

        for name, weight in dict(network.named_parameters()).items():
            if self.in_float32.search(name) and weight.dtype != torch.float32:
                place, _, leaf = name.rpartition(".")
                wide = read_onto(weights, name, weight.device, torch.float32)
                setattr(network.get_submodule(place), leaf, nn.Parameter(wide, weight.requires_grad))

    def network_class(self) -> type[Any]:
        """The class of `network_types` in diffusers."""
        import diffusers

        from flowloom.import_warnings import quiet_imports

        (name,) = self.network_types
        with quiet_imports():
            return getattr(diffusers, name)

    def tables(self, network: Any) -> Mapping[str, nn.Module]:  # noqa: ARG002
        """Parts of `network` by name that hold tables instead of weights, made on the CPU.

        A network is built without data, and no file has its tables.
        """
        return {}

    def noise_levels(self, model: ModelSettings) -> tuple[float, float]:  # noqa: ARG002
        """All of them."""
        return 0.0, 1.0

    def blocks(self, network: nn.Module) -> list[tuple[str, nn.Module]]:
        """See ModelFamily."""
        return [
            (f"{kind}.{name}", block)
            for kind in self.block_lists
            for name, block in network.get_submodule(kind).named_children()
        ]

    def recompute(self, network: Any, recompute: Recompute) -> None:
        """See ModelFamily."""
        for _, block in self.blocks(network):
            self.let_recompute_ffn(block)
        network.enable_gradient_checkpointing(recompute)

        def start(*_: object) -> None:
            recompute.start()

        network.register_forward_pre_hook(start)

    def let_recompute_ffn(self, block: Any) -> None:
        """Let `block` follow its attribute `recomputes_ffn`, see `Recompute`; its outputs are the same."""
        block.recomputes_ffn = False
        for name in self.feed_forwards:
            if hasattr(block, name):
                part = getattr(block, name)
                part.forward = partial(_run, block, part.forward)

    def load_codec(self, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> Codec:
        """FLUX's autoencoder of 16 channels, which several families use, or Wan 2.1's."""
        if self.has_causal_vae:
            from flowloom.models.causal_autoencoder import load_causal_autoencoder

            return load_causal_autoencoder(Path(model.vae_path), device, dtype)
        from flowloom.models.autoencoder import load_autoencoder

        return load_autoencoder(Path(model.vae_path), device, dtype)

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        """The autoencoder; families add their text encoders."""

        def open_codec(device: torch.device, dtype: torch.dtype) -> nn.Module:
            codec: Any = self.load_codec(model, device, dtype)
            return codec.model

        return {"model.vae_path": open_codec}

    def text_length(self, num_tokens: int, max_length: int) -> int:
        """See ModelFamily: texts without padding."""
        return min(num_tokens, max_length)

    def pack(self, latents: Tensor) -> Tensor:
        """See ModelFamily."""
        from flowloom.nn.patches import pack

        return pack(latents)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """See ModelFamily."""
        from flowloom.nn.patches import unpack

        return unpack(tokens, *grid)


def count_blocks(shapes: Mapping[str, Sequence[int]], kind: str) -> int:
    """The number of blocks in the list `kind`, by the names of their tensors."""
    return len(
        {name.removeprefix(f"{kind}.").split(".")[0] for name in shapes if name.startswith(f"{kind}.")}
    )


def _run(block: Any, forward: Any, *inputs: Any) -> Any:
    from flowloom.nn.recompute import recomputed

    return recomputed(forward, *inputs) if block.recomputes_ffn else forward(*inputs)
