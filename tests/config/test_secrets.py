import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowloom.config.flow_format.read import read_config
from flowloom.config.secrets import NAMES, read_secrets, redact, secrets_path, write_secret
from flowloom.errors import ConfigError
from flowloom.run.directory import RunDir
from flowloom.run.events import EventWriter


@pytest.fixture
def secrets_file(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "secrets.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(mode)
        return {"FLOWLOOM_SECRETS": str(path)}

    return write


def test_the_environment_wins_over_the_file(secrets_file):
    environ = secrets_file({"HF_TOKEN": "of the file", "WANDB_API_KEY": "w"}) | {"HF_TOKEN": "of the shell"}
    assert read_secrets(environ) == {"HF_TOKEN": "of the shell", "WANDB_API_KEY": "w"}


def test_without_a_file_only_the_environment_counts(tmp_path):
    environ = {"FLOWLOOM_SECRETS": str(tmp_path / "none"), "HF_TOKEN": "t", "WANDB_API_KEY": "", "HOME": "/"}
    assert read_secrets(environ) == {"HF_TOKEN": "t"}
    assert str(secrets_path({})).endswith(".config/flowloom/secrets.json")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_may_read_is_refused_with_a_hint(secrets_file, mode):
    environ = secrets_file({"HF_TOKEN": "hf_topsecret"}, mode)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        read_secrets(environ)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ['{"HF_TOKEN": "hf_topsecret', '["hf_topsecret"]', '{"HF": "hf_topsecret"}']
)
def test_a_damaged_file_is_refused_without_quoting_it(secrets_file, content):
    with pytest.raises(ConfigError) as caught:
        read_secrets(secrets_file(content))
    assert "topsecret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_secrets_that_are_set_at_once_are_all_kept(tmp_path):
    environ = {"FLOWLOOM_SECRETS": str(tmp_path / "secrets.json")}
    for _ in range(20):
        with ThreadPoolExecutor(len(NAMES)) as pool:
            list(pool.map(lambda name: write_secret(name, f"value of {name}", environ), NAMES))
        assert read_secrets(environ).keys() == set(NAMES)
        for name in NAMES:
            write_secret(name, None, environ)


def test_every_secret_in_a_text_is_masked():
    assert redact("a hf_abcdef b hf_abcdef2", ["hf_abcdef", "hf_abcdef2"]) == "a [secret] b [secret]"
    assert redact("a cat", ["a"]) == "a cat"


@pytest.mark.parametrize("secret", ['say "friend"', "back\\slash\\", "two\nlines", "schlüssel", "plain-one"])
def test_secrets_are_masked_in_json_as_well(secret: str):
    for is_ascii in (True, False):
        line = json.dumps({"message": f"key {secret} was refused"}, ensure_ascii=is_ascii)
        assert json.loads(redact(line, [secret])) == {"message": "key [secret] was refused"}


def test_no_secret_of_a_flow_file_reaches_the_run_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWLOOM_SECRETS", str(tmp_path / "none"))
    data = {"training": {"hf_token": "hf_topsecret", "wandb_key": "wb_topsecret", "hf_repo_id": "a/b"}}
    (tmp_path / "c.json").write_text(json.dumps(data))
    loaded = read_config(tmp_path / "c.json")
    run_dir = RunDir.create("run", tmp_path)
    run_dir.write_run(loaded.config, str(loaded.source), loaded.notes)
    writer = EventWriter(run_dir.events_jsonl, loaded.secrets.values())
    writer.write("warning", message=f"upload failed with {loaded.secrets['HF_TOKEN']}")
    writer.close()
    written = [path for path in run_dir.path.rglob("*") if path.is_file()]
    assert {path.name for path in written} == {"run.json", "events.jsonl"}
    assert not [path for path in written if b"topsecret" in path.read_bytes()]
