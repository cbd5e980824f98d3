import json
import sys

import pytest

from flowloom.config.flow_format.read import read_config
from flowloom.errors import ConfigError


@pytest.fixture(autouse=True)
def no_secrets_at_hand(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLOWLOOM_SECRETS", str(tmp_path / "none.json"))


@pytest.fixture
def with_aim(monkeypatch, tmp_path):
    (tmp_path / "site" / "aim").mkdir(parents=True)
    (tmp_path / "site" / "aim" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.fixture
def without_aim(monkeypatch):
    monkeypatch.setitem(sys.modules, "aim", None)


@pytest.fixture
def write(tmp_path):
    def write(content, name="config.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.fixture
def problems():
    """The problems of a configuration that cannot be read: message by path."""

    def problems(path, overrides=(), **options):
        with pytest.raises(ConfigError) as caught:
            read_config(path, overrides, **options)
        return {problem.where: problem.text for problem in caught.value.problems}

    return problems
