"""Wan 2.2 TI2V (5B): Wan's network over latents of 48 channels and 16 pixels a side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flowloom.models.architectures import Architecture, Signature
from flowloom.models.families.wan import FAMILY as WAN
from flowloom.models.families.wan import IN_DIFFUSERS, RELEASED, WanFamily
from flowloom.models.family import ClipDefaults, ModelFile

_CHANNELS = ("patch_embedding.weight", 1, 48)


class WanTi2vFamily(WanFamily):
    """See ModelFamily: text to video; the network also continues a first frame, which is not trained."""

    name, title = "wan-ti2v", "Wan 2.2 TI2V"
    network_types = frozenset({"WanTi2vTransformer3DModel"})
    architectures = {"wan-ti2v": Architecture("network", "Wan", "Wan 2.2 TI2V (5B)")}
    signatures = (
        Signature("wan-ti2v", RELEASED, _CHANNELS),
        Signature("wan-ti2v", IN_DIFFUSERS, _CHANNELS),
    )
    pipelines = frozenset[str]()
    files = (
        ModelFile("path", "Wan 2.2 TI2V's network", "network", "transformer", frozenset({"wan-ti2v"})),
        ModelFile("vae_path", "Wan 2.2's VAE", "latents", "vae", frozenset({"vae-wan22"})),
        *WAN.files[2:],
    )
    factor = 16
    flow_shift = 5.0
    # Shift, frames and rate: configs/wan_ti2v_5B.py of Wan2.2.
    defaults = replace(
        WAN.defaults,
        noise_level={"kind": "shifted", "shift": 5.0},
        clips=ClipDefaults(frames_per_latent=4, num_frames=121, fps=24.0),
    )

    def network_class(self) -> type[Any]:
        """A class by which the network differs from Wan's others."""
        from flowloom.import_warnings import quiet_imports

        with quiet_imports():
            from diffusers import WanTransformer3DModel
        (name,) = self.network_types
        return type(name, (WanTransformer3DModel,), {})


FAMILY = WanTi2vFamily()
