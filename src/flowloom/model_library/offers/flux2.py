"""FLUX.2's networks, autoencoder and text encoders; the tokenizer is among Z-Image's offers."""

from flowloom.model_library.offer import GB, Offer, Offered

_NON_COMMERCIAL = "FLUX Non-Commercial"
_ACCEPT = "Accept its license on the hub first, and set HF_TOKEN."
# Licenses by the table in black-forest-labs/flux2's README, which recommends the base models for training.
_NETWORKS = (
    (
        "FLUX.2-klein-base-4B",
        "FLUX.2 klein base 4B",
        "For LoRAs, which also work on the distilled klein 4B, and fine-tunes.",
        7.75,
        "Apache-2.0",
    ),
    (
        "FLUX.2-klein-base-9B",
        "FLUX.2 klein base 9B",
        f"For LoRAs, which also work on the distilled klein 9B. {_ACCEPT}",
        18.2,
        _NON_COMMERCIAL,
    ),
    (
        "FLUX.2-dev",
        "FLUX.2 dev",
        f"32B parameters; Mistral 3 reads the captions: use the diffusers folder. {_ACCEPT}",
        64.4,
        _NON_COMMERCIAL,
    ),
)


def _network(repo: str, title: str, note: str, size: float, license_: str) -> Offer:
    is_dev = repo.endswith("dev")
    name = "flux2-dev.safetensors" if is_dev else f"{repo.lower().replace('flux.2', 'flux-2')}.safetensors"
    return Offer(
        id=repo.lower().replace(".", ""),
        title=title,
        note=note,
        architecture="flux2-dev" if is_dev else "flux2-klein",
        license=license_,
        size=int(size * GB),
        files=(Offered(f"black-forest-labs/{repo}", name, f"flux2/{name}"),),
        sets=(("model.path", f"flux2/{name}"),),
        families=("flux2",),
    )


OFFERS = (
    *(_network(*network) for network in _NETWORKS),
    Offer(
        id="flux2-vae",
        title="FLUX.2's VAE",
        note="Encodes and decodes FLUX.2's latents.",
        architecture="vae-flux2",
        license="Apache-2.0",
        size=336_211_292,
        files=(
            Offered(
                "Comfy-Org/Flux-2-Klein-4B",
                "split_files/vae/flux2-vae.safetensors",
                "vae/flux2-vae.safetensors",
            ),
        ),
        sets=(("model.vae_path", "vae/flux2-vae.safetensors"),),
        families=("flux2",),
    ),
    Offer(
        id="qwen3-4b",
        title="Qwen3 4B",
        note="Reads the captions of Z-Image and of FLUX.2 klein 4B; in 16 bits.",
        architecture="qwen3",
        license="Apache-2.0",
        size=8_044_982_048,
        files=(
            Offered(
                "Comfy-Org/z_image_turbo",
                "split_files/text_encoders/qwen_3_4b.safetensors",
                "text_encoders/qwen_3_4b.safetensors",
            ),
        ),
        sets=(("model.text_encoder_path", "text_encoders/qwen_3_4b.safetensors"),),
        families=("z-image", "flux2"),
    ),
    Offer(
        id="qwen3-8b",
        title="Qwen3 8B",
        note="Reads the captions of FLUX.2 klein 9B; in 16 bits.",
        architecture="qwen3",
        license="Apache-2.0",
        size=int(16.4 * GB),
        files=(
            Offered(
                "Comfy-Org/Flux-2-Klein-9B",
                "split_files/text_encoders/qwen_3_8b.safetensors",
                "text_encoders/qwen_3_8b.safetensors",
            ),
        ),
        sets=(("model.text_encoder_path", "text_encoders/qwen_3_8b.safetensors"),),
        families=("flux2",),
    ),
)
