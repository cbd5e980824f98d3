import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowloom.cli.main import COMMANDS, main
from flowloom.config.keys import config_keys

HERE = Path(__file__).parents[1]
FLOW = HERE / "golden" / "flow"


def run(*arguments, **options):
    command = [sys.executable, "-m", "flowloom.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"training": {"lr": 1e-4}}))
    return path


@pytest.mark.timing
def test_help_starts_at_once():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = run("--help")
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
    assert min(seconds) < 0.3


def test_help_imports_nothing_that_verbs_need():
    code = (
        "import sys; from flowloom.cli.main import main; main(['--help']);"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'argparse') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_help_names_the_verbs_that_there_are(capsys):
    assert main(["--help"]) == 0
    assert re.findall(r"^  ([a-z]+)", capsys.readouterr().out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_its_own_help(verb, capsys):
    try:
        status = main([verb, "--help"])
    except SystemExit as end:
        status = end.code
    assert status == 0
    assert f"usage: flowloom {verb}" in capsys.readouterr().out


def test_help_of_train_has_every_key_with_type_default_and_use(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key in config_keys().values():
        if not key.is_section:
            assert f"  --{key.name} " in text
    assert "  --training.lr float > 0; default: 1e-05\n      Learning rate after the warm-up.\n" in text


def test_every_key_has_a_help_text():
    assert [key.name for key in config_keys().values() if not key.help] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "there is no command 'tran'. Did you mean train?"),
        (["train", "x.json", "--dryrun"], "there is no option --dryrun. Did you mean --dry-run?"),
        (["train", "no.json"], "no.json: does not exist."),
        (["resume", "no-run"], "no-run: no such file or directory"),
        (["schema", "--check", "no.json"], "no.json: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("name", ["training_config_lumina.json", "training_config_reflowing.json"])
def test_files_of_other_trainers_are_refused_in_one_line(name, capsys):
    assert main(["train", str(FLOW / name)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not supported" in error


def test_problems_are_listed_together_and_no_run_is_made(config, capsys, tmp_path):
    arguments = [
        "train",
        str(config),
        "--runs-dir",
        str(tmp_path / "runs"),
        "--training.lr",
        "-1",
        "--model.vea_path",
        "x",
    ]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "  --training.lr: must be greater than 0, not -1.\n" in error
    assert "  --model.vea_path: unknown key; did you mean model.vae_path?\n" in error
    assert "  dataloader.jsonl_metadata_path: is needed" in error
    assert not (tmp_path / "runs").exists()


def test_the_schema_is_the_one_on_record():
    golden = HERE / "golden" / "schema.json"
    assert main(["schema", "--check", str(golden)]) == 0, (
        "if it is meant: flowloom schema > tests/golden/schema.json"
    )


def test_a_changed_schema_is_shown(tmp_path, capsys):
    golden = (HERE / "golden" / "schema.json").read_text()
    changed = tmp_path / "schema.json"
    changed.write_text(golden.replace("Learning rate after", "Rate after"))
    assert main(["schema", "--check", str(changed)]) == 2
    assert "Rate after" in capsys.readouterr().err


def test_the_schema_that_is_printed_is_the_one_that_is_checked(tmp_path, capsys):
    main(["schema"])
    printed = tmp_path / "schema.json"
    printed.write_text(capsys.readouterr().out)
    assert main(["schema", "--check", str(printed)]) == 0


@pytest.mark.parametrize("size", ["512", "0x16", "100x100", "axb"])
def test_a_size_that_cannot_be_is_refused(size, capsys):
    with pytest.raises(SystemExit) as end:
        main(["sample", "runs/x", "--prompt", "a", "--size", size])
    assert end.value.code == 2
    assert "argument --size" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error():
    head = shutil.which("head")
    command = f"{sys.executable} -m flowloom.cli.main train --help | {head} -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
