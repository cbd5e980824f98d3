"""Access to the studio: who gets it, to which files, and the refusals."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.server.allowed_roots import AllowedRoots, inside
from flowloom.server.problems import MEDIA_TYPE, NoSuchFile, OutsideRoots
from tests.server.conftest import Studio

TOKEN = "a-token-of-the-tests-own"
LEADING_OUT = [
    "../outside.txt",
    "a/../../outside.txt",
    "/etc/passwd",
    "..",
    "..\\outside.txt",
    "link.txt",
    "linked/outside.txt",
    "a\0b",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file in it, one beside it, and symbolic links from the one to the other."""
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "inside.txt").write_text("inside")
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "round").symlink_to(folder / "round")
    (folder / "near.txt").symlink_to(folder / "a" / "inside.txt")
    return folder


@pytest.fixture(scope="module")
def studio_with_links(one_studio: Studio) -> Studio:
    """A studio with a run, and links from its folders to what is outside of them."""
    outside = one_studio.home / "outside"
    outside.mkdir()
    (outside / "run.json").write_text(json.dumps({"config": {}, "secret": "outside"}))
    run = one_studio.home / "runs" / "one"
    for name in ("samples", "checkpoints"):
        (run / name).mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"config": {}}))
    (run / "checkpoints" / "link").symlink_to(outside / "run.json")
    (one_studio.home / "runs" / "linked").symlink_to(outside)
    return one_studio


@pytest.mark.parametrize("name", LEADING_OUT)
def test_no_name_leads_out_of_a_folder(folder: Path, name: str):
    with pytest.raises(OutsideRoots):
        inside(folder, name)


@pytest.mark.parametrize("name", ["a/inside.txt", "near.txt", "./a//inside.txt"])
def test_names_and_links_within_a_folder_are_followed(folder: Path, name: str):
    assert inside(folder, name).read_text() == "inside"


@pytest.mark.parametrize("name", ["nothing", "round", "a/inside.txt/x", "x" * 5000])
def test_missing_files_are_not_found(folder: Path, name: str):
    with pytest.raises(NoSuchFile):
        inside(folder, name)


def test_paths_in_a_configuration_that_lead_out_are_all_named(folder: Path):
    config = {
        "model": {"chroma_path": "/etc/passwd", "vae_path": str(folder / "a" / "inside.txt")},
        "sets": [{"image_folder_path": str(folder / "linked")}],
        "out_dir": str(folder / ".." / "x"),
        "prompt": "/not/a/path",
    }
    found = [problem.where for problem in AllowedRoots({"data": folder}).path_problems(config)]
    assert found == ["model.chroma_path", "sets.0.image_folder_path", "out_dir"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/..%2f..%2fetc/config",
        "/api/runs/%2e%2e/log",
        "/api/runs/one/samples/..%2f..%2f..%2foutside.txt",
        "/api/runs/one/samples/%2e%2e/run.json",
        "/api/runs/one/checkpoints/..%2frun.json",
        "/api/runs/one/checkpoints/link",
        "/api/runs/linked/config",
        "/api/roots/runs/file?path=../outside.txt",
        "/api/roots/runs/file?path=/etc/passwd",
        "/api/roots/runs/file?path=linked/run.json",
        "/api/roots/etc/file?path=passwd",
        "/api/roots/runs/list?path=..",
        "/api/roots/runs/file?path=one%00",
    ],
)
def test_no_request_leads_out_of_the_roots(studio_with_links: Studio, path: str):
    answer = studio_with_links.http.get(path)
    assert answer.status_code in (403, 404), answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert "secret" not in answer.text


def test_a_configuration_cannot_name_files_outside_of_the_roots(
    one_studio: Studio, tiny_config: Callable[..., dict[str, Any]]
):
    config = tiny_config(dataloader={"jsonl_metadata_path": "/etc/passwd"})
    answer = one_studio.http.post("/api/flow/train/start", json={"name": "x", "config": config})
    assert answer.status_code == 422
    assert [problem["where"] for problem in answer.json()["errors"]] == [
        "/config/dataloader/jsonl_metadata_path"
    ]
    assert not (one_studio.home / "runs" / "x").exists()


def test_every_problem_of_a_configuration_is_named_at_once(
    one_studio: Studio, tiny_config: Callable[..., dict[str, Any]]
):
    config = tiny_config()
    config["training"] |= {"lr": -1, "sped": 2}
    config["ema"] = {"decay": 7}
    answer = one_studio.http.post("/api/flow/train/start", json={"name": "x", "config": config})
    pointers = {problem["where"] for problem in answer.json()["errors"]}
    assert pointers == {"/config/training/lr", "/config/training/sped", "/config/ema/decay"}
    verdict = one_studio.post("/api/flow/config", {"config": config})
    assert not verdict["is_valid"]
    assert {problem["where"] for problem in verdict["problems"]} == pointers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::2]:80"]
)
def test_without_a_token_only_loopback_names_are_answered(one_studio: Studio, host: str):
    answer = one_studio.http.get("/api/runs", headers={"host": host})
    assert answer.status_code == 403
    assert answer.headers["content-type"] == MEDIA_TYPE


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_no_other_site_changes_anything(one_studio: Studio, headers: dict[str, str]):
    answer = one_studio.http.post("/api/flow/train/start", json={"name": "x", "config": {}}, headers=headers)
    assert answer.status_code == 403


def test_a_form_of_another_site_is_no_json(one_studio: Studio):
    body = json.dumps({"name": "x", "config": {}})
    answer = one_studio.http.post(
        "/api/flow/train/start", content=body, headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 422
    assert not (one_studio.home / "runs" / "x").exists()


def test_with_a_token_every_request_carries_it(studio_at: Callable[..., Studio]):
    studio = studio_at("home", "--token", TOKEN).start()
    assert studio.get("/api/health")["needs_token"]
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"cookie": f"flowloom_session={TOKEN}"},
    ):
        answer = studio.http.get("/api/runs", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == MEDIA_TYPE
    assert studio.http.get("/api/openapi.json").status_code == 401
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert studio.http.get("/api/runs", headers=bearer | {"host": "studio.example"}).status_code == 200


def test_the_browser_signs_in_with_a_cookie_that_is_not_the_token(studio_at: Callable[..., Studio]):
    studio = studio_at("home", "--token", TOKEN).start()
    assert studio.http.post("/api/session", json={"token": "wrong"}).status_code == 401
    cookie = studio.http.post("/api/session", json={"token": TOKEN}).headers["set-cookie"]
    assert TOKEN not in cookie
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict"))
    assert studio.http.get("/api/runs").status_code == 200
    by_tls = studio.http.post("/api/session", json={"token": TOKEN}, headers={"x-forwarded-proto": "https"})
    assert "Secure" in by_tls.headers["set-cookie"]


def test_another_address_than_loopback_makes_a_token_that_only_its_owner_reads(
    studio_at: Callable[..., Studio],
):
    studio = studio_at("home", "--host", "0.0.0.0")
    kept = studio.home / ".flowloom" / "token"
    kept.parent.mkdir(mode=0o700, parents=True)
    kept.touch(0o600)  # as a full disk leaves it
    studio.start()
    assert studio.http.get("/api/runs", headers={"authorization": "Bearer"}).status_code == 401
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert len(kept.read_text()) >= 32
    assert studio.http.get("/api/runs").status_code == 401
    assert f"#token={kept.read_text()}" in (studio.home / "server.log").read_text()


def test_secrets_are_set_and_never_read_back(
    studio_at: Callable[..., Studio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "secrets.json"
    monkeypatch.setenv("FLOWLOOM_SECRETS", str(path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    studio = studio_at().start()
    secret = "hf_not-a-real-token"
    assert studio.http.put("/api/secrets/HF_TOKEN", json={"value": secret}).status_code == 204
    answer = studio.http.get("/api/secrets")
    assert {"name": "HF_TOKEN", "is_set": True} in answer.json()
    assert secret not in answer.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert studio.http.delete("/api/secrets/HF_TOKEN").status_code == 204
    assert {"name": "HF_TOKEN", "is_set": False} in studio.get("/api/secrets")
    assert studio.http.put("/api/secrets/PATH", json={"value": "x"}).status_code == 422


def test_every_answer_has_the_security_headers(one_studio: Studio):
    for path in ("/api/health", "/api/runs/nothing", "/nothing"):
        headers = one_studio.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/api/runs/nothing", 404),
        ("PATCH", "/api/runs", 405),
        ("GET", "/api/runs?limit=0", 422),
        ("GET", "/api/sd/config", 404),
        ("POST", "/api/flow/train/stop", 422),
        ("POST", "/api/runs/nothing/stop", 404),
    ],
)
def test_every_error_is_a_problem(one_studio: Studio, method: str, path: str, status: int):
    answer = one_studio.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert {"type", "title", "status", "detail", "hint"} <= answer.json().keys()


@pytest.mark.parametrize("is_length_told", [True, False])
def test_a_body_beyond_the_limit_is_refused(one_studio: Studio, is_length_told: bool):
    body = json.dumps({"config": {"x": "a" * (5 * 2**20)}}).encode()
    content = body if is_length_told else iter([body])
    headers = {"content-type": "application/json"}
    answer = one_studio.http.post("/api/flow/config", content=content, headers=headers)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == MEDIA_TYPE


@pytest.mark.parametrize("depth", [600, 100_000])
@pytest.mark.parametrize("path", ["flow/config", "kohya/config", "flow/config/preview", "flow/train/start"])
def test_json_nested_without_end_is_refused(one_studio: Studio, path: str, depth: int):
    body = '{"config": {"model": ' + "[" * depth + "1" + "]" * depth + "}}"
    answer = one_studio.http.post(f"/api/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413, 422)  # 413: more values than a body may have
    assert answer.headers["content-type"] == MEDIA_TYPE


@pytest.mark.parametrize(
    "body", [{"bmaltais": "[" * 100_000}, {"toml": "x = " + "[" * 50_000}], ids=["json", "toml"]
)
def test_imported_text_may_be_nested_without_end(one_studio: Studio, body: dict[str, str]):
    answer = one_studio.http.post("/api/kohya/import", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, MEDIA_TYPE)


def test_a_folder_is_listed_without_hidden_files_and_links_that_lead_out(one_studio: Studio, tmp_path: Path):
    folder = one_studio.home / "data" / "listed"
    (folder / "b").mkdir(parents=True)
    for name in ("a.txt", "c.txt", ".hidden"):
        (folder / name).touch()
    (tmp_path / "outside").mkdir()
    for name, target in (
        ("out", tmp_path / "outside"),
        ("in", folder / "b"),
        ("gone", folder / "no"),
        ("loop", folder / "loop"),
    ):
        (folder / name).symlink_to(target)
    whole = one_studio.http.get("/api/roots/data/list?path=listed").json()
    assert [(one["name"], one["is_folder"]) for one in whole["entries"]] == [
        ("b", True), ("in", True), ("a.txt", False), ("c.txt", False),
    ]  # fmt: skip
    part = one_studio.http.get("/api/roots/data/list?path=listed&skip=1&limit=2").json()
    assert (part["total"], [one["name"] for one in part["entries"]]) == (4, ["in", "a.txt"])


def test_no_route_takes_a_command_line(one_studio: Studio, tiny_config: Callable[..., dict[str, Any]]):
    body = {"name": "x", "config": tiny_config(), "argv": ["touch", "x"], "env": {"PATH": "."}}
    answer = one_studio.http.post("/api/flow/train/start", json=body)
    assert {problem["where"] for problem in answer.json()["errors"]} == {"/argv", "/env"}


def test_the_home_of_a_studio_is_its_owners(one_studio: Studio):
    assert not stat.S_IMODE((one_studio.home / ".flowloom").stat().st_mode) & 0o077
    assert os.access(one_studio.home, os.W_OK)
