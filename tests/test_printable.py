"""No password, signature or token is printed: one rule, at every place that prints."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from flowloom.config.flow_format.read import load_config
from flowloom.config.run import RunConfig
from flowloom.config.secrets import redact
from flowloom.config.validation import problems_of
from flowloom.datasets.lint.check import LintOptions, lint
from flowloom.datasets.lint.page import write_page
from flowloom.datasets.lint.text import report_text
from flowloom.errors import ConfigError, DataError, FlowloomError, Problem, RunError
from flowloom.printable import is_secret, printable, printable_value
from flowloom.run.events import EventWriter
from flowloom.server.log_format import PrintableFormatter
from flowloom.server.problems import FieldProblem, Invalid, ProblemView
from tests.datasets.build.images import built, write

WORD = "Hush0Hush1"
ADDRESSES = [
    f"https://user:{WORD}@store.test",
    f"https://user:a@{WORD}@store.test/x.png",
    f"https://user:a/{WORD}@store.test/x.png",
    f"https://user:a?{WORD}@store.test",
    f"https://user:a#{WORD}@store.test",
    f"https://user:a {WORD}@store.test",
    f"HTTPS://{WORD}@store.test/x.png",
    f"https://user:8080{WORD}@store.test",
    f"s3://key:{WORD}@bucket/x.png",
    f"aim://me:{WORD}@store.test:53800",
    f"https://b.store.test/x.png?X-Amz-Credential=AK%2F1&X-Amz-Signature={WORD}&X-Amz-Expires=60",
    f"https://b.store.test/x.png?X-Amz-Security-Token={WORD}",
    f"https://storage.googleapis.com/b/x.png?X-Goog-Signature={WORD}",
    f"https://storage.googleapis.com/b/x.png?GoogleAccessId=a&Expires=1&Signature={WORD}",
    f"https://a.blob.core.windows.net/c/x.png?sv=2024&sp=r&sig={WORD}%3D",
    f"az://c/x.png?sv=2024&sig={WORD}",
    f"https://d.cloudfront.net/x.png?Policy=x&Key-Pair-Id=y&Signature={WORD}",
    f"https://store.test/x.png?token={WORD}",
    f"https://store.test/x.png?anything={WORD}",
    f"http://127.0.0.1:7860/#token={WORD}",
]
OTHERS = [
    f"/files/x.png?access_token={WORD}",
    f"Authorization: Bearer {WORD}",
    f"password={WORD}",
    f"hf_{WORD}abc",
    f"ghp_{WORD}{WORD}{WORD}",
    f"AKI{'A'}HUSH0HUSH1ABCDEF",
    f"eyJ{WORD}{WORD}.{WORD}{WORD}.{WORD}",
]


def is_quiet(text: str) -> bool:
    return WORD not in text and "HUSH0" not in text


@pytest.mark.parametrize("secret", [*ADDRESSES, *OTHERS])
@pytest.mark.parametrize("frame", ["{}", "cannot read {}.", 'must be text, not "{}".', "({}), then more"])
def test_no_credential_is_left_in_a_text(secret: str, frame: str):
    assert is_quiet(printable(frame.format(secret)))
    assert is_quiet(redact(frame.format(secret), []))


@pytest.mark.parametrize(
    "text",
    [
        "https://store.test:8080/a@b.png",
        "s3://bucket/a@b c?#.png: no such file.",
        "token: must be text, not 7.",
        "http://[::1]:7860/a@b.png, http://[2606:4700::1111] and http://[fe80::1: none of them answers.",
        "See https://tus.io (creation), then http://localhost:3000/x.",
        "keep_tokens=1, key=abc, lr=0.1",
        "C:\\sets\\a_b.png",
        "",
    ],
)
def test_text_without_a_credential_stays(text: str):
    assert printable(text) == text


def test_the_end_of_a_sentence_stays():
    assert printable(f"https://u:{WORD}@h/a.png?sig={WORD}, line 3.") == "https://h/a.png, line 3."


@pytest.mark.parametrize("secret", [*ADDRESSES, *OTHERS])
def test_no_error_of_ours_holds_a_credential(secret: str):
    for error in (
        FlowloomError(secret),
        DataError(f"{secret}: gone"),
        RunError(secret),
        ConfigError(secret, [Problem(secret, secret)]),
        Invalid(secret, secret, [FieldProblem(where="/x", detail=secret)]),
        Invalid.of([Problem("a", secret)]),
    ):
        assert is_quiet(f"{error} {error!r} {error.args}")
    assert is_quiet(
        Invalid(secret, secret, [FieldProblem(where="/x", detail=secret)]).view().model_dump_json()
    )
    view = ProblemView(type="x", code="x", title="x", status=400, detail=secret, hint=secret)
    assert is_quiet(view.model_dump_json())


@pytest.mark.parametrize("length", range(20, 60))
def test_an_address_that_is_cut_off_shows_no_password(length: int):
    assert is_quiet(printable(f"https://user:{WORD}{WORD}{WORD}{WORD}@store.test"[:length]))


@pytest.mark.parametrize("secret", ADDRESSES)
def test_a_wrong_value_of_a_configuration_is_shown_without_credentials(secret: str):
    padded = [secret, f"https://{'x' * 44}:{WORD}@store.test"]  # cut off at 60 letters
    for value in padded:
        for data in (
            {"storage": {"endpoint": f"{value} @"}},
            {"storage": {"tries": value}},
            {"dataloader": {"batch_size": [value]}},
            {"loggers": [{"kind": value}]},
        ):
            with pytest.raises(ConfigError) as caught:
                load_config(data, [], Path("run.json"))
            assert is_quiet(str(caught.value))


def test_an_endpoint_with_a_password_is_refused_with_what_to_write():
    """Without its password it looks right, so that the message has to say what is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        load_config({"storage": {"endpoint": f"https://user:{WORD}@store.test"}}, [], Path("run.json"))
    assert is_quiet(str(caught.value))
    assert "write http(s)://HOST with no name or password in it" in str(caught.value)
    for address in ("https://store.test:9000", "http://store.test/minio"):
        config = load_config({"storage": {"endpoint": address}}, [], Path("run.json")).config
        assert config.storage.endpoint == address


@pytest.mark.parametrize("key", ["hf_tokens", "wandb_api_key", "secret_access_key", "password", "auth_token"])
def test_a_value_under_the_name_of_a_secret_is_never_shown(key: str):
    assert is_secret(f"loggers.0.{key}")
    class_ = type("Config", (RunConfig,), {"__annotations__": {key: int}})
    with pytest.raises(ValidationError) as caught:
        class_.model_validate({key: WORD})
    said = problems_of(caught.value, {key: WORD})
    assert is_quiet(str(said))
    assert "[hidden]" in str(said)


def test_no_key_of_the_configuration_is_taken_for_a_secret():
    dumped = RunConfig().model_dump(mode="json")
    assert printable_value("", dumped) == json.loads(json.dumps(dumped))


def test_trackers_get_the_configuration_without_credentials():
    config: dict[str, Any] = {
        "dataloader": {"jsonl_metadata_path": ADDRESSES[10]},
        "loggers": [{"repo": ADDRESSES[9], "api_key": WORD}],
        "steps": 3,
    }
    public = printable_value("", config)
    assert is_quiet(json.dumps(public))
    assert (public["steps"], public["loggers"][0]["repo"]) == (3, "aim://store.test:53800")


def test_no_event_holds_a_credential(tmp_path: Path):
    writer = EventWriter(tmp_path / "events.jsonl")
    for secret in [*ADDRESSES, *OTHERS]:
        writer.write("warning", message=f'"{secret}"\nü \\ {secret}')
    writer.close()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert is_quiet("\n".join(lines))
    assert [json.loads(line)["kind"] for line in lines] == ["warning"] * len(lines)


def test_a_build_and_its_list_of_problems_hold_no_credential(tmp_path: Path):
    rows: list[dict[str, Any]] = [{"url": url, "caption": [url, 1]} for url in ADDRESSES]
    rows += [{"image": f"below/{url}", "caption": "x"} for url in ADDRESSES]
    source = write(tmp_path / "set.jsonl", b"\n".join(map(orjson.dumps, rows)))
    good = {"url": "https://store.test/x.png", "caption": "x", "width": 9, "height": 9}
    write(source, source.read_bytes() + b"\n" + orjson.dumps(good))
    _, report = built(source, tmp_path / "d.jsonl")
    assert report.problems_path
    assert is_quiet(report.problems_path.read_text() + str(report.unusable) + str(report.remarks))


def test_no_form_of_a_lint_report_holds_a_credential(tmp_path: Path):
    rows = [
        {"filename": url, "caption_or_tags": "", "width": 9, "height": 9, "is_url_based": True}
        for url in ADDRESSES
    ]
    rows.append({"filename": ADDRESSES[0], "caption_or_tags": 7, "width": 9, "height": 9})
    jsonl = write(tmp_path / "d.jsonl", b"\n".join(map(orjson.dumps, rows)))
    run = RunConfig()
    data = run.dataloader.model_copy(
        update={"jsonl_metadata_path": str(jsonl), "image_folder_path": str(tmp_path)}
    )
    seen = lint(LintOptions(run.model_copy(update={"dataloader": data})))
    write_page(tmp_path / "page.html", seen)
    for text in (
        report_text(seen.report, 100),
        json.dumps(seen.report.as_json()),
        (tmp_path / "page.html").read_text(),
    ):
        assert is_quiet(text)
        assert "empty" in text.lower()


def test_the_studio_s_log_holds_no_credential():
    try:
        raise OSError(f"GET {ADDRESSES[10]} failed")
    except OSError:
        record = logging.getLogger("x").makeRecord("x", 40, "f", 1, "%s", (ADDRESSES[0],), None)

        record.exc_info = sys.exc_info()
    text = PrintableFormatter(logging.Formatter()).format(record)
    assert is_quiet(text)
    assert "Traceback" in text
