"""Chroma's networks, T5 and FLUX's VAE."""

from flowloom.model_library.offer import GB, Offer, Offered


def _chroma(id_: str, title: str, note: str, repo: str, name: str) -> Offer:
    save_as = f"chroma/{name}"
    files, sets = (Offered(repo, name, save_as),), (("model.chroma_path", save_as),)
    return Offer(id_, title, note, "chroma", "Apache-2.0", 17_800_000_000, files, sets)


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
        size=int(9.79 * GB),
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
)
