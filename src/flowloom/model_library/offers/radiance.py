"""Chroma Radiance's network; its text encoder is Chroma's."""

from flowloom.model_library.offer import Offer, Offered

_NAME = "Chroma1-Radiance-v0.4.safetensors"
OFFERS = (
    Offer(
        id="chroma1-radiance",
        title="Chroma1 Radiance 0.4",
        note="Works on pixels, without a VAE.",
        architecture="chroma-radiance",
        license="Apache-2.0",
        size=19_012_264_454,
        files=(Offered("lodestones/Chroma1-Radiance", _NAME, f"chroma/{_NAME}"),),
        sets=(("model.path", f"chroma/{_NAME}"),),
        families=("radiance",),
    ),
)
