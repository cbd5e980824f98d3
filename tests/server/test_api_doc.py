"""The commands of docs/api.md do what they say, one after the other, from an empty home."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.server.conftest import Studio, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
ADDRESS = "http://127.0.0.1:7860"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_page_work(studio: Studio, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    script = "\n".join(["set -eu", *blocks]).replace(ADDRESS, studio.url)
    assert script.count("curl") == 6
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sent = (tmp_path / "1.png").read_bytes()
    assert f"upload-offset: {len(sent)}" in done.stdout
    assert (studio.home / "data" / "fox" / "den" / "1.png").read_bytes() == sent
    images = wait_for(lambda: studio.get("/api/datasets/fox/images")["images"])
    assert [one["file"] for one in images] == ["den/1.png"]
