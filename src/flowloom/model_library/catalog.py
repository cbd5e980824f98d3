"""Models that a configuration needs, and where their authors offer them.

Addresses are of the Hugging Face hub. Sizes are approximate, for display; downloads
are checked against the hub's data.
"""

from __future__ import annotations

from dataclasses import dataclass

_GB = 10**9


@dataclass(frozen=True)
class Offered:
    """One file of a repository."""

    repo: str
    name: str
    save_as: str
    """Below the folder for models."""


@dataclass(frozen=True)
class Offer:
    """A model to download."""

    id: str
    title: str
    note: str
    architecture: str
    """An architecture; `t5-tokenizer` of T5's tokenizer and sizes."""
    license: str
    size: int
    """Bytes, about."""
    files: tuple[Offered, ...]
    sets: tuple[tuple[str, str], ...]
    """Keys of a configuration, each with its value: a `save_as` or its folder."""
    families: tuple[str, ...] = ()
    """Families that it is for; empty: every one that has these keys."""


def _chroma(id_: str, title: str, note: str, repo: str, name: str, architecture: str = "chroma") -> Offer:
    save_as = f"chroma/{name}"
    sets = (("model.chroma_path", save_as),) if architecture == "chroma" else ()
    files = (Offered(repo, name, save_as),)
    return Offer(id_, title, note, architecture, "Apache-2.0", 17_800_000_000, files, sets)


def _qwen_image(id_: str, title: str, note: str, repo: str, name: str) -> Offer:
    save_as = f"qwen_image/{name}"
    return Offer(
        id=id_,
        title=title,
        note=note,
        architecture="qwen-image",
        license="Apache-2.0",
        size=int(40.9 * _GB),
        files=(Offered(repo, f"split_files/diffusion_models/{name}", save_as),),
        sets=(("model.path", save_as),),
        families=("qwen-image",),
    )


OFFERS = (
    _chroma(
        "chroma1-hd",
        "Chroma1 HD",
        "For LoRAs, short fine-tunes at 1024 pixels, and image generation.",
        "lodestones/Chroma1-HD",
        "Chroma1-HD.safetensors",
    ),
    _chroma(
        "chroma1-base",
        "Chroma1 Base",
        "For long fine-tunes; trained at 512 pixels.",
        "lodestones/Chroma1-Base",
        "Chroma1-Base.safetensors",
    ),
    _chroma(
        "chroma1-flash",
        "Chroma1 Flash",
        "For images in few steps without guidance.",
        "lodestones/Chroma1-Flash",
        "Chroma1-HD-Flash.safetensors",
    ),
    _chroma(
        "chroma1-radiance",
        "Chroma1 Radiance 0.4",
        "Works on pixels, without a VAE. No trainer here takes it yet.",
        "lodestones/Chroma1-Radiance",
        "Chroma1-Radiance-v0.4.safetensors",
        "chroma-radiance",
    ),
    Offer(
        id="flux-vae",
        title="FLUX's VAE",
        note="Encodes and decodes Chroma's latents.",
        architecture="vae-flux",
        license="Apache-2.0",
        size=335_304_388,
        files=(Offered("lodestones/Chroma", "ae.safetensors", "vae/ae.safetensors"),),
        sets=(("model.vae_path", "vae/ae.safetensors"),),
    ),
    Offer(
        id="t5-xxl",
        title="T5 XXL, encoder",
        note="Reads the captions; in 16 bits.",
        architecture="t5-xxl",
        license="Apache-2.0",
        size=int(9.79 * _GB),
        files=(
            Offered(
                "comfyanonymous/flux_text_encoders", "t5xxl_fp16.safetensors", "t5xxl/t5xxl_fp16.safetensors"
            ),
        ),
        sets=(("model.t5_path", "t5xxl/t5xxl_fp16.safetensors"),),
    ),
    Offer(
        id="t5-tokenizer",
        title="T5 XXL, tokenizer and sizes",
        note="Two small files that go with every T5 XXL.",
        architecture="t5-tokenizer",
        license="Apache-2.0",
        size=800_000,
        files=(
            Offered("google/t5-v1_1-xxl", "spiece.model", "t5xxl/spiece.model"),
            Offered("google/t5-v1_1-xxl", "config.json", "t5xxl/config.json"),
        ),
        sets=(("model.t5_config_path", "t5xxl/config.json"), ("model.t5_tokenizer_path", "t5xxl")),
    ),
    Offer(
        id="flux1-schnell",
        title="FLUX.1 schnell",
        note="Distilled to sample in 1 to 4 steps, which training undoes.",
        architecture="flux-schnell",
        license="Apache-2.0",
        size=int(23.8 * _GB),
        files=(
            Offered(
                "black-forest-labs/FLUX.1-schnell",
                "flux1-schnell.safetensors",
                "flux1/flux1-schnell.safetensors",
            ),
        ),
        sets=(("model.path", "flux1/flux1-schnell.safetensors"),),
    ),
    Offer(
        id="clip-l",
        title="CLIP L, text encoder",
        note="FLUX.1 reads captions with it too.",
        architecture="clip-l",
        license="MIT",
        size=246_144_152,
        files=(
            Offered("comfyanonymous/flux_text_encoders", "clip_l.safetensors", "clip_l/clip_l.safetensors"),
        ),
        sets=(("model.clip_path", "clip_l/clip_l.safetensors"),),
    ),
    Offer(
        id="clip-tokenizer",
        title="CLIP L, tokenizer",
        note="Two small files that go with CLIP L.",
        architecture="clip-tokenizer",
        license="MIT",
        size=1_400_000,
        files=(
            Offered("openai/clip-vit-large-patch14", "vocab.json", "clip_l/vocab.json"),
            Offered("openai/clip-vit-large-patch14", "merges.txt", "clip_l/merges.txt"),
        ),
        sets=(("model.clip_tokenizer_path", "clip_l"),),
    ),
    _qwen_image(
        "qwen-image",
        "Qwen-Image",
        "For LoRAs and image generation; renders text well.",
        "Comfy-Org/Qwen-Image_ComfyUI",
        "qwen_image_bf16.safetensors",
    ),
    _qwen_image(
        "qwen-image-edit-2509",
        "Qwen-Image-Edit 2509",
        "Edits one to three reference images.",
        "Comfy-Org/Qwen-Image-Edit_ComfyUI",
        "qwen_image_edit_2509_bf16.safetensors",
    ),
    _qwen_image(
        "qwen-image-edit-2511",
        "Qwen-Image-Edit 2511",
        "Edits one to three reference images, more faithfully than 2509.",
        "Comfy-Org/Qwen-Image-Edit_ComfyUI",
        "qwen_image_edit_2511_bf16.safetensors",
    ),
    Offer(
        id="qwen-image-vae",
        title="Qwen-Image's VAE",
        note="Encodes and decodes Qwen-Image's latents.",
        architecture="vae-wan",
        license="Apache-2.0",
        size=253_806_246,
        files=(
            Offered(
                "Comfy-Org/Qwen-Image_ComfyUI",
                "split_files/vae/qwen_image_vae.safetensors",
                "vae/qwen_image_vae.safetensors",
            ),
        ),
        sets=(("model.vae_path", "vae/qwen_image_vae.safetensors"),),
        families=("qwen-image",),
    ),
    Offer(
        id="qwen-2.5-vl-7b",
        title="Qwen2.5-VL 7B",
        note="Reads captions and reference images for Qwen-Image; in 16 bits.",
        architecture="language-model",
        license="Apache-2.0",
        size=int(16.6 * _GB),
        files=(
            Offered(
                "Comfy-Org/Qwen-Image_ComfyUI",
                "split_files/text_encoders/qwen_2.5_vl_7b.safetensors",
                "qwen_2.5_vl/qwen_2.5_vl_7b.safetensors",
            ),
        ),
        sets=(("model.text_encoder_path", "qwen_2.5_vl/qwen_2.5_vl_7b.safetensors"),),
        families=("qwen-image",),
    ),
    Offer(
        id="qwen-2.5-vl-tokenizer",
        title="Qwen2.5-VL, tokenizer",
        note="Small files that go with Qwen2.5-VL.",
        architecture="language-tokenizer",
        license="Apache-2.0",
        size=4_500_000,
        files=tuple(
            Offered("Qwen/Qwen-Image", f"tokenizer/{name}", f"qwen_2.5_vl/{name}")
            for name in ("vocab.json", "merges.txt", "tokenizer_config.json")
        ),
        sets=(("model.text_tokenizer_path", "qwen_2.5_vl"),),
        families=("qwen-image",),
    ),
)


def offer_for(key: str, family: str) -> Offer:
    """The first model offered to `family` for a key of the configuration, such as model.vae_path."""
    offers = [offer for offer in OFFERS if key in dict(offer.sets)]
    fitting = [offer for offer in offers if not offer.families or family in offer.families]
    return max(fitting or offers, key=lambda offer: family in offer.families)
