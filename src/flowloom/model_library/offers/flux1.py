"""FLUX.1 and CLIP."""

from flowloom.model_library.offer import GB, Offer, Offered

OFFERS = (
    Offer(
        id="flux1-schnell",
        title="FLUX.1 schnell",
        note="Distilled to sample in 1 to 4 steps, which training undoes.",
        architecture="flux-schnell",
        license="Apache-2.0",
        size=int(23.8 * GB),
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
)
