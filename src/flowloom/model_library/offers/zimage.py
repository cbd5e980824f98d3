"""Z-Image's networks, as ComfyUI uses them, and Qwen3's tokenizer; FLUX.2's offers have Qwen3 4B."""

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
