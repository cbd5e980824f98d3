"""Krea 2's network and text encoder, as ComfyUI uses them. Its VAE is Qwen-Image's."""

from flowloom.model_library.offer import GB, Offer, Offered

LICENSE = "Krea 2 Community License"
OFFERS = (
    Offer(
        id="krea2-raw",
        title="Krea 2 Raw",
        note="For training. Adapters that are trained on it work on Krea 2 Turbo.",
        architecture="krea2",
        license=LICENSE,
        size=int(26.3 * GB),
        files=(
            Offered(
                "Comfy-Org/Krea-2",
                "diffusion_models/krea2_raw_bf16.safetensors",
                "krea2/krea2_raw_bf16.safetensors",
            ),
        ),
        sets=(("model.path", "krea2/krea2_raw_bf16.safetensors"),),
        families=("krea2",),
    ),
    Offer(
        id="qwen3-vl-4b",
        title="Qwen3-VL 4B",
        note="Reads captions for Krea 2; in 16 bits.",
        architecture="qwen3-vl",
        license="Apache-2.0",
        size=int(8.9 * GB),
        files=(
            Offered(
                "Comfy-Org/Krea-2",
                "text_encoders/qwen3vl_4b_bf16.safetensors",
                "qwen3_vl_4b/qwen3vl_4b_bf16.safetensors",
            ),
        ),
        sets=(("model.text_encoder_path", "qwen3_vl_4b/qwen3vl_4b_bf16.safetensors"),),
        families=("krea2",),
    ),
    Offer(
        id="qwen3-vl-tokenizer",
        title="Qwen3-VL, tokenizer",
        note="Small files that go with Qwen3-VL.",
        architecture="language-tokenizer",
        license="Apache-2.0",
        size=4_500_000,
        files=tuple(
            Offered("Qwen/Qwen3-VL-4B-Instruct", name, f"qwen3_vl_4b/{name}")
            for name in ("vocab.json", "merges.txt", "tokenizer_config.json")
        ),
        sets=(("model.text_tokenizer_path", "qwen3_vl_4b"),),
        families=("krea2",),
    ),
)
