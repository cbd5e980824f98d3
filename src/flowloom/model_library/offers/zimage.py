"""Z-Image's networks and text encoder, as ComfyUI uses them."""

from flowloom.model_library.offer import GB, Offer, Offered

_NETWORKS = {
    "z_image": ("Z-Image", "For LoRAs, which also work on Turbo, fine-tunes and image generation."),
    "z_image_turbo": (
        "Z-Image Turbo",
        "Distilled to sample in 8 steps, which training undoes. For images with LoRAs of Z-Image.",
    ),
}

OFFERS = (
    *(
        Offer(
            id=name.replace("_", "-"),
            title=title,
            note=note,
            architecture="z-image",
            license="Apache-2.0",
            size=int(12.3 * GB),
            files=(
                Offered(
                    f"Comfy-Org/{name}",
                    f"split_files/diffusion_models/{name}_bf16.safetensors",
                    f"z_image/{name}_bf16.safetensors",
                ),
            ),
            sets=(("model.path", f"z_image/{name}_bf16.safetensors"),),
            families=("z-image",),
        )
        for name, (title, note) in _NETWORKS.items()
    ),
    Offer(
        id="qwen3-4b",
        title="Qwen3 4B",
        note="Reads the captions of Z-Image and of FLUX.2 klein 4B; in 16 bits.",
        architecture="language-model",
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
        id="qwen3-tokenizer",
        title="Qwen3, tokenizer",
        note="Two small files that go with every Qwen3.",
        architecture="language-tokenizer",
        license="Apache-2.0",
        size=11_440_000,
        files=tuple(
            Offered("Qwen/Qwen3-4B", name, f"text_encoders/qwen3/{name}")
            for name in ("tokenizer.json", "tokenizer_config.json")
        ),
        sets=(("model.text_tokenizer_path", "text_encoders/qwen3"),),
        families=("z-image", "flux2"),
    ),
)
