"""`flowloom cache` fills, shows, verifies and prunes, and reports problems."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.cache import size_text
from flowloom.cli.main import OK, WRONG, main
from flowloom.config.run import RunConfig


@pytest.fixture
def config_path(tmp_path: Path, tiny_family: Any) -> Path:
    import json

    from PIL import Image

    rows = []
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 20, 200)).save(tmp_path / f"{i}.png")
        rows.append({"filename": f"{i}.png", "caption_or_tags": f"red, {i}", "width": 64, "height": 64})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "dataloader": {
            "jsonl_metadata_path": str(tmp_path / "data.jsonl"),
            "image_folder_path": str(tmp_path),
            "base_resolution": [64],
        },
        "model": {
            "chroma_path": str(tiny_family.chroma_path),
            "vae_path": str(tiny_family.vae_path),
            "t5_path": str(tiny_family.t5_path),
            "t5_config_path": str(tiny_family.t5_path / "config.json"),
            "t5_tokenizer_path": str(tiny_family.t5_path),
        },
        "parallel": {"device": "cpu"},
        "objective": {"lowercase_percentage": 0.0},
        "cache": {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache")},
    }
    RunConfig.model_validate(config)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_the_command_fills_shows_verifies_and_prunes(
    config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*arguments: str, status: int = OK) -> str:
        assert main(["cache", *arguments]) == status
        return capsys.readouterr().out

    assert "3 images, 4 captions" in printed(str(config_path)), "three and the empty one"
    assert "0 images, 0 captions" in printed("fill", str(config_path))
    output = printed("stats", str(config_path))
    assert "image-latents" in output
    assert re.search(r"cache: \d+\.\d KiB in 2 shards", output), output
    assert re.search(r"image-latents +3 records +\d+\.\d KiB\n", output)
    assert re.search(r"caption-states +4 records +\d+\.\d KiB\n", output)
    assert "every record is intact" in printed("verify", str(config_path))
    assert "0 records removed, 7 kept" in printed("prune", str(config_path))
    (config_path.parent / "2.png").unlink()
    assert "1 record removed, 6 kept" in printed("prune", str(config_path))
    config_path.write_text(
        config_path.read_text().replace('"image_folder_path": "', '"image_folder_path": "/none')
    )
    assert main(["cache", "prune", str(config_path)]) == OK
    kept = capsys.readouterr()
    assert "0 records removed, 6 kept" in kept.out
    assert "no latents were removed, because this image cannot be read" in kept.err
    shard = next((config_path.parent / "cache").glob("*.shard"))
    raw = bytearray(shard.read_bytes())
    raw[300] ^= 1
    shard.write_bytes(raw)
    assert "payload is damaged" in printed("verify", str(config_path), status=WRONG)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--cache.latents", "off", "--cache.text", "off"], "set cache.latents"),
        (["--objective.mask_mode", "flow_union"], "depend on the batch"),
        (["--cache.dir", "ftp://host/cache"], "use a folder, or a URL"),
    ],
)
def test_entries_that_cannot_be_cached_are_reported(
    config_path: Path, flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", str(config_path), *flags]) == WRONG
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "printed"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (3 * 2**40, "3,072.0 GiB"),
    ],
)
def test_sizes_are_printed_in_a_fitting_unit(size: int, printed: str) -> None:
    assert size_text(size) == printed
