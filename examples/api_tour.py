"""From a folder of images to a LoRA, by HTTP alone: what a script or a page does with the studio.

    flowloom up --home studio &
    python examples/api_tour.py PICTURES --config model.json --tagger-repo SmilingWolf/wd-vit-tagger-v3
    python examples/api_tour.py PICTURES --kohya kohya.json

`--config` holds what a FLOW configuration needs beside the data: paths of the model, as GET /api/flow/models
or POST /api/models/missing give them. `--kohya` holds the same for Kohya's sd-scripts: its files and its
command are shown, and where sd-scripts is installed, it trains too. What the tour makes is left in the studio
to be looked at; LoRAs and samples are downloaded to `--out`.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".jxl"}
OVER = {"finished", "stopped", "failed", "interrupted"}
CHUNK = 2**20


class Studio:
    """The few requests that a tour takes."""

    def __init__(self, url: str, token: str | None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60)

    def get(self, path: str, **params: Any) -> Any:
        """The JSON at `path`."""
        return self._told(self.http.get(path, params=params))

    def post(self, path: str, body: Any) -> Any:
        """What posting `body` answers."""
        return self._told(self.http.post(path, json=body))

    def _told(self, answer: httpx.Response) -> Any:
        if answer.is_success:
            return answer.json()
        problem = answer.json()
        lines = [f"{one['where']}: {one['detail']}" for one in problem.get("errors", [])]
        sys.exit(
            "\n".join([f"{problem['title']} {problem.get('detail', '')}", *lines, problem.get("hint", "")])
        )

    def upload(self, dataset: str, path: Path, name: str) -> None:
        """Send a file in pieces (tus 1.0); where a connection broke, HEAD would say how much has come."""
        named = base64.b64encode(name.encode()).decode()
        length = {"Upload-Length": str(path.stat().st_size), "Upload-Metadata": f"relativePath {named}"}
        tus = {"Tus-Resumable": "1.0.0"}
        place = self.http.post(f"/api/datasets/{dataset}/uploads", headers=tus | length)
        place.raise_for_status()
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                offset = {"Upload-Offset": str(file.tell() - len(piece))}
                kind = {"Content-Type": "application/offset+octet-stream"}
                sent = self.http.patch(place.headers["Location"], content=piece, headers=tus | offset | kind)
                sent.raise_for_status()

    def events(self, run: str) -> Iterator[dict[str, Any]]:
        """What the run says, from its beginning on, as it comes; a run that was killed says nothing more."""
        with self.http.stream("GET", f"/api/runs/{run}/events", timeout=None) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))
                elif line.startswith(":") and self.get(f"/api/runs/{run}")["state"] in OVER:
                    return

    def wait(self, run: str, *states: str) -> dict[str, Any]:
        """The run as soon as it is over; anything but one of `states` ends the tour."""
        while (view := self.get(f"/api/runs/{run}"))["state"] not in OVER:
            time.sleep(0.3)
        if view["state"] not in (states or ("finished",)):
            sys.exit(f"{run} is {view['state']}: {view['error']}")
        return view

    def download(self, url: str, path: Path) -> None:
        """Write what is at `url` to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.http.stream("GET", url) as answer, path.open("wb") as file:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                file.write(piece)
        print(f"  {path}  {path.stat().st_size:,} bytes")


def make_dataset(studio: Studio, folder: Path, name: str) -> dict[str, Any]:
    """A dataset of the images in `folder`, with the captions beside them."""
    dataset = studio.post("/api/datasets", {"name": name})
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURES | {".txt"}]
    for path in files:
        studio.upload(name, path, path.relative_to(folder).as_posix())
    summary = studio.get(f"/api/datasets/{name}/summary")
    print(f"dataset {name}: {len(files)} files sent, {summary}")
    return dataset


def tag(studio: Studio, dataset: dict[str, Any], name: str, tagger: dict[str, str]) -> None:
    """Look at what the tagger would write of three images, then let it write."""
    config = {"data_path": dataset["path"], **tagger}
    for run, preview in ((f"{name}-look", 3), (f"{name}-tags", 0)):
        studio.post("/api/tasks/tag/start", {"name": run, "config": config | {"preview": preview}})
        studio.wait(run)
    for one in studio.get(f"/api/runs/{name}-look/result")["preview"]:
        print(f"  {one['image']}: {one['after'][0]}")


def train(studio: Studio, trainer: str, name: str, config: dict[str, Any], steps: int) -> None:
    """Train, stop half-way, go on; follow it meanwhile."""
    verdict = studio.post(f"/api/{trainer}/config", {"config": config})
    if not verdict["is_valid"]:
        sys.exit("\n".join(f"{one['where']}: {one['detail']}" for one in verdict["problems"]))
    studio.post(f"/api/{trainer}/train/start", {"name": name, "config": config})
    for event in studio.events(name):
        if event["kind"] == "step":
            print(f"  step {event['step']}  loss {event['loss_smooth']:.4f}")
            if event["step"] == steps // 2:
                studio.post(f"/api/runs/{name}/stop", None)
        if event["kind"] in OVER:
            break
    view = studio.wait(name, "stopped", "finished")
    print(f"{name} is {view['state']} at step {view['step']}")
    if view["can_resume"]:
        studio.post(f"/api/runs/{name}/resume", {})
    print(f"{name} is {studio.wait(name)['state']} at step {studio.get(f'/api/runs/{name}')['step']}")


def export(studio: Studio, name: str) -> str:
    """Write a run's newest LoRA by ComfyUI's names, as a run of its own; its name."""
    roots = {root["name"]: root["path"] for root in studio.get("/api/roots")}
    config = {"source_path": f"{roots['runs']}/{name}", "form": "comfy"}
    studio.post("/api/tasks/export/start", {"name": f"{name}-comfy", "config": config})
    return studio.wait(f"{name}-comfy")["id"]


def fetch(studio: Studio, name: str, out: Path) -> None:
    """The newest weights and samples of a run."""
    for file in studio.get(f"/api/runs/{name}/checkpoints")["checkpoints"][0]["files"]:
        studio.download(file["url"], out / name / file["name"])
    for sample in studio.get(f"/api/runs/{name}/samples")["samples"][:4]:
        studio.download(sample["url"], out / sample["file"])


def flow_tour(studio: Studio, name: str, dataset: dict[str, Any], asked: argparse.Namespace) -> None:
    """FLOW JSONL of the dataset, and a LoRA of our own engine."""
    rows = studio.post(f"/api/datasets/{name}/convert", {"as_run": False})["result"]
    print(f"{rows['num_rows']} rows of FLOW JSONL")
    config = json.loads(asked.config.read_text())
    config["dataloader"] = config.get("dataloader", {}) | {
        "jsonl_metadata_path": studio.get(f"/api/datasets/{name}.jsonl")["path"],
        "image_folder_path": dataset["path"],
    }
    config["limits"] = {"max_steps": asked.steps}
    train(studio, "flow", name, config, asked.steps)
    fetch(studio, name, asked.out)
    fetch(studio, export(studio, name), asked.out)


def kohya_tour(studio: Studio, name: str, dataset: dict[str, Any], asked: argparse.Namespace) -> None:
    """What sd-scripts would be given; and where it is installed, a LoRA of it."""
    form = studio.get("/api/kohya/config")
    print(f"a configuration of Kohya has {', '.join(form['schema']['properties'])}")
    config = json.loads(asked.kohya.read_text())
    first = next(iter(config.get("datasets", [])), {})
    config["datasets"] = [first | {"subsets": [{"image_dir": dataset["path"]}]}]
    config["training"] = config.get("training", {}) | {"max_train_steps": asked.steps}
    shown = studio.post("/api/kohya/config/preview", {"config": config, "name": f"{name}-kohya"})
    for file in shown["files"]:
        print(f"--- {file['name']}\n{file['text']}")
    for problem in shown["problems"]:
        print(f"{problem['where']}: {problem['detail']}")
    if shown["command"] is None:
        print("sd-scripts is not on this machine, so this was a dry run: flowloom trainers install kohya")
        return
    print(f"$ {shown['command']['line']}")
    train(studio, "kohya", f"{name}-kohya", config, asked.steps)
    fetch(studio, f"{name}-kohya", asked.out)


def main() -> None:
    """The whole tour."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--token")
    parser.add_argument("--name", default="tour")
    parser.add_argument("--config", type=Path, help="a FLOW configuration without its data")
    parser.add_argument("--kohya", type=Path, help="a Kohya configuration without its data")
    parser.add_argument("--tagger-repo", help="of the Hugging Face hub")
    parser.add_argument("--tagger-path", help="a folder of the studio's machine")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("tour"))
    asked = parser.parse_args()
    studio, name = Studio(asked.url, asked.token), asked.name
    dataset = make_dataset(studio, asked.pictures, name)
    if asked.tagger_repo or asked.tagger_path:
        tagger = {"repo": asked.tagger_repo} if asked.tagger_repo else {"model_path": asked.tagger_path}
        tag(studio, dataset, name, tagger)
    if asked.config:
        flow_tour(studio, name, dataset, asked)
    if asked.kohya:
        kohya_tour(studio, name, dataset, asked)


if __name__ == "__main__":
    main()
