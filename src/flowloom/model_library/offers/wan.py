"""Wan 2.1 and 2.2: networks, VAEs and UMT5, as ComfyUI uses them."""

from flowloom.model_library.offer import GB, Offer, Offered

_WAN21, _WAN22 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"
_BOTH = ("wan", "wan-ti2v")


def _network(id_: str, title: str, note: str, name: str, size: float) -> Offer:
    repo = _WAN22 if name.startswith("wan2.2") else _WAN21
    family = "wan-ti2v" if "ti2v" in name else "wan"
    return Offer(
        id=id_,
        title=title,
        note=note,
        architecture=family,
        license="Apache-2.0",
        size=int(size * GB),
        files=(Offered(repo, f"split_files/diffusion_models/{name}", f"wan/{name}"),),
        sets=(("model.path", f"wan/{name}"),),
        families=(family,),
    )


def _vae(id_: str, title: str, family: str, repo: str, name: str, size: int) -> Offer:
    return Offer(
        id=id_,
        title=title,
        note="Encodes and decodes clips.",
        architecture="vae-wan22" if family == "wan-ti2v" else "vae-wan",
        license="Apache-2.0",
        size=size,
        files=(Offered(repo, f"split_files/vae/{name}", f"wan/vae/{name}"),),
        sets=(("model.vae_path", f"wan/vae/{name}"),),
        families=(family,),
    )


OFFERS = (
    _network(
        "wan21-1.3b",
        "Wan 2.1 T2V 1.3B",
        "Clips of 480p; the smallest, for GPUs of 12 GB.",
        "wan2.1_t2v_1.3B_bf16.safetensors",
        2.84,
    ),
    _network(
        "wan21-14b", "Wan 2.1 T2V 14B", "Clips of 480p and 720p.", "wan2.1_t2v_14B_bf16.safetensors", 28.6
    ),
    _network(
        "wan22-5b",
        "Wan 2.2 TI2V 5B",
        "Clips of 720p at 24 frames a second, with a VAE of 16 pixels a side.",
        "wan2.2_ti2v_5B_fp16.safetensors",
        10.0,
    ),
    _network(
        "wan22-high",
        "Wan 2.2 T2V A14B, high noise",
        "The first of two networks: composition and motion.",
        "wan2.2_t2v_high_noise_14B_fp16.safetensors",
        28.6,
    ),
    _network(
        "wan22-low",
        "Wan 2.2 T2V A14B, low noise",
        "The second of two networks: details.",
        "wan2.2_t2v_low_noise_14B_fp16.safetensors",
        28.6,
    ),
    _vae("wan21-vae", "Wan 2.1's VAE", "wan", _WAN21, "wan_2.1_vae.safetensors", 253_815_318),
    _vae("wan22-vae", "Wan 2.2's VAE", "wan-ti2v", _WAN22, "wan2.2_vae.safetensors", 1_409_400_960),
    Offer(
        id="umt5-xxl",
        title="UMT5 XXL, encoder",
        note="Reads the captions of Wan; in 16 bits.",
        architecture="umt5",
        license="Apache-2.0",
        size=int(11.4 * GB),
        files=(
            Offered(
                _WAN21,
                "split_files/text_encoders/umt5_xxl_fp16.safetensors",
                "umt5xxl/umt5_xxl_fp16.safetensors",
            ),
        ),
        sets=(("model.t5_path", "umt5xxl/umt5_xxl_fp16.safetensors"),),
        families=_BOTH,
    ),
    Offer(
        id="umt5-tokenizer",
        title="UMT5 XXL, tokenizer and sizes",
        note="Two small files that go with every UMT5 XXL.",
        architecture="t5-tokenizer",
        license="Apache-2.0",
        size=4_550_000,
        files=(
            Offered("google/umt5-xxl", "spiece.model", "umt5xxl/spiece.model"),
            Offered("google/umt5-xxl", "config.json", "umt5xxl/config.json"),
        ),
        sets=(("model.t5_config_path", "umt5xxl/config.json"), ("model.t5_tokenizer_path", "umt5xxl")),
        families=_BOTH,
    ),
)
