"""Lumina 2's network and text encoder, as ComfyUI uses them."""

from flowloom.model_library.offer import GB, Offer, Offered

_REPO = "Comfy-Org/Lumina_Image_2.0_Repackaged"

OFFERS = (
    Offer(
        id="lumina2",
        title="Lumina Image 2",
        note="A small network of 2.6B parameters, for LoRAs, fine-tunes and image generation.",
        architecture="lumina2",
        license="Apache-2.0",
        size=int(5.22 * GB),
        files=(
            Offered(
                _REPO,
                "split_files/diffusion_models/lumina_2_model_bf16.safetensors",
                "lumina2/lumina_2_model_bf16.safetensors",
            ),
        ),
        sets=(("model.path", "lumina2/lumina_2_model_bf16.safetensors"),),
        families=("lumina2",),
    ),
    Offer(
        id="gemma2-2b",
        title="Gemma 2 2B",
        note="Reads the captions of Lumina 2; in 16 bits.",
        architecture="gemma2",
        license="Gemma",
        size=int(5.23 * GB),
        files=(
            Offered(
                _REPO,
                "split_files/text_encoders/gemma_2_2b_fp16.safetensors",
                "gemma2_2b/gemma_2_2b_fp16.safetensors",
            ),
        ),
        sets=(("model.text_encoder_path", "gemma2_2b/gemma_2_2b_fp16.safetensors"),),
        families=("lumina2",),
    ),
    Offer(
        id="gemma2-tokenizer",
        title="Gemma 2, tokenizer",
        note="Two files that go with every Gemma 2.",
        architecture="language-tokenizer",
        license="Gemma",
        size=34_400_000,
        files=tuple(
            Offered("Alpha-VLLM/Lumina-Image-2.0", f"tokenizer/{name}", f"gemma2_2b/{name}")
            for name in ("tokenizer.json", "tokenizer_config.json")
        ),
        sets=(("model.text_tokenizer_path", "gemma2_2b"),),
        families=("lumina2",),
    ),
)
