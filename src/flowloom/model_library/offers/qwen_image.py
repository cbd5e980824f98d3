"""Qwen-Image's networks, VAE and text encoder, as ComfyUI uses them."""

from flowloom.model_library.offer import GB, Offer, Offered


def _qwen_image(id_: str, title: str, note: str, repo: str, name: str) -> Offer:
    save_as = f"qwen_image/{name}"
    return Offer(
        id=id_,
        title=title,
        note=note,
        architecture="qwen-image",
        license="Apache-2.0",
        size=int(40.9 * GB),
        files=(Offered(repo, f"split_files/diffusion_models/{name}", save_as),),
        sets=(("model.path", save_as),),
        families=("qwen-image",),
    )


OFFERS = (
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
        note="Encodes and decodes the latents of Qwen-Image and Krea 2.",
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
        families=("qwen-image", "krea2"),
    ),
    Offer(
        id="qwen-2.5-vl-7b",
        title="Qwen2.5-VL 7B",
        note="Reads captions and reference images for Qwen-Image; in 16 bits.",
        architecture="qwen2.5",
        license="Apache-2.0",
        size=int(16.6 * GB),
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
