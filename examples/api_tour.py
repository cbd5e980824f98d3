"""From a folder of images to a LoRA through the studio's HTTP API. Needs httpx: `pip install httpx`.

    flowloom up --home studio &
    python examples/api_tour.py IMAGES --config model.json --tagger-repo SmilingWolf/wd-vit-tagger-v3
    python examples/api_tour.py IMAGES --kohya kohya.json

`--config` is a FLOW configuration without its data: the paths of the model, as in GET /api/flow/models or
POST /api/models/missing. `--kohya` is the same for Kohya's sd-scripts; the tour prints the files and the
command, and trains if sd-scripts is installed. Datasets and runs stay in the studio; LoRAs and samples are
downloaded to `--out`.
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

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".jxl"}
ENDED = {"finished", "stopped", "failed", "interrupted"}
CHUNK_BYTES = 2**20


class Studio:
    """The requests of the tour."""

    def __init__(self, url: str, token: str | None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60)

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON at `path`."""
        return self._json(self.http.get(path, params=params))

    def post(self, path: str, body: Any) -> Any:
        """Post `body` and return the response."""
        return self._json(self.http.post(path, json=body))

    def _json(self, response: httpx.Response) -> Any:
        if response.is_success:
            return response.json()
        problem = response.json()
        lines = [f"{error['where']}: {error['detail']}" for error in problem.get("errors", [])]
        sys.exit(
            "\n".join([f"{problem['title']} {problem.get('detail', '')}", *lines, problem.get("hint", "")])
        )

    def upload(self, dataset: str, path: Path, name: str) -> None:
        """Upload a file in chunks (tus 1.0). HEAD would return the offset after a broken connection."""
        tus = {"Tus-Resumable": "1.0.0"}
        encoded = base64.b64encode(name.encode()).decode()
        head = {"Upload-Length": str(path.stat().st_size), "Upload-Metadata": f"relativePath {encoded}"}
        created = self.http.post(f"/api/datasets/{dataset}/uploads", headers=tus | head)
        created.raise_for_status()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                offset = str(file.tell() - len(chunk))
                head = {"Upload-Offset": offset, "Content-Type": "application/offset+octet-stream"}
                sent = self.http.patch(created.headers["Location"], content=chunk, headers=tus | head)
                sent.raise_for_status()

    def events(self, run: str) -> Iterator[dict[str, Any]]:
        """Yield the run's events from its start, until it has ended; a killed run has no last event."""
        with self.http.stream("GET", f"/api/runs/{run}/events", timeout=None) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))
                elif line.startswith(":") and self.get(f"/api/runs/{run}")["state"] in ENDED:
                    return

    def wait(self, run: str, *states: str) -> dict[str, Any]:
        """Return the run when it has ended; exit if its state is not one of `states`."""
        while (view := self.get(f"/api/runs/{run}"))["state"] not in ENDED:
            time.sleep(0.3)
        if view["state"] not in (states or ("finished",)):
            sys.exit(f"{run} is {view['state']}: {view['error']}")
        return view

    def download(self, url: str, path: Path) -> None:
        """Download `url` to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.http.stream("GET", url) as response, path.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                file.write(chunk)
        print(f"  {path}  {path.stat().st_size:,} bytes")


def make_dataset(studio: Studio, folder: Path, name: str) -> dict[str, Any]:
    """Create a dataset from the images in `folder` and the captions next to them."""
    dataset = studio.post("/api/datasets", {"name": name})
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES | {".txt"}]
    for path in files:
        studio.upload(name, path, path.relative_to(folder).as_posix())
    summary = studio.get(f"/api/datasets/{name}/summary")
    print(f"dataset {name}: {len(files)} files uploaded, {summary}")
    return dataset


def tag(studio: Studio, dataset: dict[str, Any], name: str, tagger: dict[str, str]) -> None:
    """Preview the tags of three images, then write the tags of all."""
    config = {"data_path": dataset["path"], **tagger}
    for run, preview in ((f"{name}-preview", 3), (f"{name}-tags", 0)):
        studio.post("/api/tasks/tag/start", {"name": run, "config": config | {"preview": preview}})
        studio.wait(run)
    for image in studio.get(f"/api/runs/{name}-preview/result")["preview"]:
        print(f"  {image['image']}: {image['after'][0]}")


def train(studio: Studio, trainer: str, name: str, config: dict[str, Any], steps: int) -> None:
    """Train, stop halfway and resume, printing the loss of each step."""
    validation = studio.post(f"/api/{trainer}/config", {"config": config})
    if not validation["is_valid"]:
        sys.exit("\n".join(f"{problem['where']}: {problem['detail']}" for problem in validation["problems"]))
    studio.post(f"/api/{trainer}/train/start", {"name": name, "config": config})
    for event in studio.events(name):
        if event["kind"] == "step":
            print(f"  step {event['step']}  loss {event['loss_smooth']:.4f}")
            if event["step"] == steps // 2:
                studio.post(f"/api/runs/{name}/stop", None)
        if event["kind"] in ENDED:
            break
    view = studio.wait(name, "stopped", "finished")
    print(f"{name} is {view['state']} at step {view['step']}")
    if view["can_resume"]:
        studio.post(f"/api/runs/{name}/resume", {})
    print(f"{name} is {studio.wait(name)['state']} at step {studio.get(f'/api/runs/{name}')['step']}")


def export(studio: Studio, name: str) -> str:
    """Export a run's newest LoRA with ComfyUI's names; return the name of the export's run."""
    roots = {root["name"]: root["path"] for root in studio.get("/api/roots")}
    config = {"source_path": f"{roots['runs']}/{name}", "form": "comfy"}
    studio.post("/api/tasks/export/start", {"name": f"{name}-comfy", "config": config})
    return studio.wait(f"{name}-comfy")["id"]


def fetch(studio: Studio, name: str, out: Path) -> None:
    """Download the newest weights and samples of a run."""
    for file in studio.get(f"/api/runs/{name}/checkpoints")["checkpoints"][0]["files"]:
        studio.download(file["url"], out / name / file["name"])
    for sample in studio.get(f"/api/runs/{name}/samples")["samples"][:4]:
        studio.download(sample["url"], out / sample["file"])


def flow_tour(studio: Studio, name: str, dataset: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the dataset's FLOW JSONL and train a LoRA with Flowloom's engine."""
    rows = studio.post(f"/api/datasets/{name}/convert", {"as_run": False})["result"]
    print(f"{rows['num_rows']} rows of FLOW JSONL")
    config = json.loads(options.config.read_text())
    config["dataloader"] = config.get("dataloader", {}) | {
        "jsonl_metadata_path": studio.get(f"/api/datasets/{name}.jsonl")["path"],
        "image_folder_path": dataset["path"],
    }
    config["limits"] = {"max_steps": options.steps}
    train(studio, "flow", name, config, options.steps)
    fetch(studio, name, options.out)
    fetch(studio, export(studio, name), options.out)


def kohya_tour(studio: Studio, name: str, dataset: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the files for sd-scripts and, if it is installed, train a LoRA with it."""
    form = studio.get("/api/kohya/config")
    print(f"sections of a Kohya configuration: {', '.join(form['schema']['properties'])}")
    config = json.loads(options.kohya.read_text())
    first = next(iter(config.get("datasets", [])), {})
    config["datasets"] = [first | {"subsets": [{"image_dir": dataset["path"]}]}]
    config["training"] = config.get("training", {}) | {"max_train_steps": options.steps}
    preview = studio.post("/api/kohya/config/preview", {"config": config, "name": f"{name}-kohya"})
    for file in preview["files"]:
        print(f"--- {file['name']}\n{file['text']}")
    for problem in preview["problems"]:
        print(f"{problem['where']}: {problem['detail']}")
    if preview["command"] is None:
        print("sd-scripts is not installed, so this was a dry run: flowloom trainers install kohya")
        return
    print(f"$ {preview['command']['line']}")
    train(studio, "kohya", f"{name}-kohya", config, options.steps)
    fetch(studio, f"{name}-kohya", options.out)


def main() -> None:
    """Run the tour."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images", type=Path, help="a folder of images, with captions in .txt files next to them"
    )
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--token")
    parser.add_argument("--name", default="tour")
    parser.add_argument("--config", type=Path, help="a FLOW configuration without its data")
    parser.add_argument("--kohya", type=Path, help="a Kohya configuration without its data")
    parser.add_argument("--tagger-repo", help="a tagger of the Hugging Face hub")
    parser.add_argument("--tagger-path", help="the folder of a tagger on the studio's machine")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("tour"))
    options = parser.parse_args()
    studio, name = Studio(options.url, options.token), options.name
    dataset = make_dataset(studio, options.images, name)
    if options.tagger_repo or options.tagger_path:
        tagger = {"repo": options.tagger_repo} if options.tagger_repo else {"model_path": options.tagger_path}
        tag(studio, dataset, name, tagger)
    if options.config:
        flow_tour(studio, name, dataset, options)
    if options.kohya:
        kohya_tour(studio, name, dataset, options)


if __name__ == "__main__":
    main()
