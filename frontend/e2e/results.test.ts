/** A run's results, compared and used; and images in a bucket. */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import type { Browser, Page } from "playwright-core";
import { launch } from "./browser.ts";
import { Studio, until } from "./studio.ts";

const ROOT = resolve(import.meta.dirname, "..", "..");

let browser: Browser;
let studio: Studio;
let config: Record<string, Record<string, unknown>>;

before(async () => {
  browser = await launch();
  // The tool of a cluster with two partitions.
  const tools = mkdtempSync(join(tmpdir(), "flowloom-e2e-tools-"));
  writeFileSync(join(tools, "sinfo"), "#!/bin/sh\necho gpu-a100\necho gpu-long-queue\n", { mode: 0o755 });
  process.env.PATH = `${tools}:${process.env.PATH}`;
  studio = await new Studio().start();
  config = await studio.trained("first", 3);
  const models = join(studio.home, "models");
  copyFileSync(join(models, "demo", "chroma.safetensors"), join(models, "chroma-v2.safetensors"));
});

after(async () => {
  await browser?.close();
  await studio?.clear();
});

async function open(path: string, where = studio): Promise<Page> {
  const page = await browser.newPage({ viewport: { width: 1366, height: 900 } });
  page.setDefaultTimeout(Number(process.env.FLOWLOOM_PATIENCE_MS ?? 120_000));
  page.on("pageerror", (error) => {
    throw error;
  });
  await page.goto(where.url + path);
  return page;
}

test("checkpoints are selected, sampled with two numbers of steps, and laid out as a grid", async () => {
  const page = await open("/playground/");
  const field = (name: string) => page.locator(`[data-field="${name}"]`);
  await field("prompts").getByRole("textbox").fill("red heart");
  for (const side of ["width", "height"]) await field(side).getByRole("textbox").fill("64");
  await field("cfg").getByRole("textbox").fill("1");
  await field("grid.steps").getByRole("textbox").fill("1, 2");
  await field("grid.source_paths").getByRole("button", { name: "Choose checkpoints" }).click();
  const picker = page.getByRole("dialog", { name: "Choose checkpoints" });
  const found = picker.getByRole("list", { name: "Checkpoints of first" });
  await found.getByRole("button", { name: "Select all" }).click();
  const names = readdirSync(join(studio.home, "runs", "first", "checkpoints")).sort();
  await picker.getByText(`${names.length} selected`, { exact: true }).last().waitFor();
  assert.equal(names.length, 2);
  await picker.getByRole("button", { name: "Done" }).click();
  const typed = await field("grid.source_paths").getByRole("textbox").inputValue();
  assert.deepEqual(
    typed.split("\n").sort(),
    names.map((name) => join(studio.home, "runs", "first", "checkpoints", name)),
  );

  const generate = page.getByRole("button", { name: "Generate", exact: true });
  await until(() => generate.isEnabled());
  await generate.click();
  const id = await until(async () => {
    const { runs } = await studio.get<{ runs: { id: string; state: string }[] }>("/api/runs?trainer=sample");
    const run = runs[0];
    assert.notEqual(run?.state, "failed", studio.log());
    return run?.state === "finished" && run.id;
  });
  await page.goto(`${studio.url}/runs/?id=${id}`);
  const plane = page.getByRole("region", { name: "Images by settings" });
  await plane.getByRole("img").nth(3).waitFor();
  await page.getByLabel("Columns").selectOption("steps");
  await page.getByLabel("Rows").selectOption("source");
  assert.deepEqual(await plane.getByRole("columnheader").allTextContents(), ["steps 1", "steps 2"]);
  const rows = await plane.getByRole("rowheader").allTextContents();
  assert.deepEqual(rows.map((row) => row.split("/").at(-1)).sort(), names);
  for (const row of await plane.getByRole("row").all())
    assert.ok([0, 2].includes(await row.getByRole("img").count()), "one image in each cell");
});

test("the newest image is compared with the first one of its prompt", async () => {
  const page = await open("/runs/?id=first");
  await page
    .getByRole("button", { name: /step 3$/ })
    .first()
    .click();
  const box = page.getByRole("dialog", { name: /^Step 3/ });
  await box.getByRole("button", { name: "Before and after" }).click();
  const before = box.getByRole("img", { name: /, step 1$/ });
  const shown = () => before.evaluate((image) => (image as HTMLElement).style.clipPath);
  assert.match(await shown(), /50%/);
  await box.getByRole("slider", { name: /^Before/ }).fill("80");
  assert.match(await shown(), /20%/);
  await page.keyboard.press("Escape");
  await page
    .getByRole("button", { name: /step 3$/ })
    .first()
    .click();
  await page.keyboard.press("ArrowLeft");
  await page.getByRole("dialog", { name: /^Step 2/ }).waitFor();
});

test("two models are compared, and differences are visible", async () => {
  const page = await open("/models/");
  for (const name of ["ae.safetensors", "chroma-v2.safetensors"])
    await page
      .getByRole("checkbox", { name: new RegExp(name) })
      .first()
      .check();
  await page.getByRole("button", { name: "Compare" }).click();
  const table = page.getByRole("dialog", { name: "Compare 2 models" }).getByRole("table");
  assert.equal(await table.getByRole("columnheader").count(), 2);
  const kinds = await table.getByRole("row", { name: /^Type/ }).getByRole("cell").allTextContents();
  assert.equal(new Set(kinds).size, 2, kinds.join());
});

/** A file of tensors in float16, all zeros. */
function writeTensors(path: string, shapes: Record<string, number[]>, metadata: Record<string, string> = {}) {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let end = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const begin = end;
    end += shape.reduce((product, side) => product * side, 2);
    header[name] = { dtype: "F16", shape, data_offsets: [begin, end] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, Buffer.alloc(end)]));
}

/** A LoRA of one layer with training settings in its header. */
function writeAdapter(path: string, metadata: Record<string, string>): void {
  const name = "lora_unet_double_blocks_0_img_attn_qkv";
  const shapes = { [`${name}.lora_down.weight`]: [4, 64], [`${name}.lora_up.weight`]: [192, 4] };
  writeTensors(path, shapes, metadata);
}

test("a FLUX.1 base model is recognized, and the form shows the files that it needs", async () => {
  const path = join(studio.home, "models", "flux1-dev.safetensors");
  writeTensors(path, {
    "double_blocks.0.img_attn.qkv.weight": [192, 64],
    "vector_in.in_layer.weight": [64, 32],
    "guidance_in.in_layer.weight": [64, 32],
    "final_layer.linear.weight": [64, 64],
  });
  try {
    const page = await open("/flow-training/");
    await page.getByRole("radio", { name: /FLUX.1 · dev/ }).check();
    const json = page.getByLabel(/Configuration as JSON/);
    type Model = { path?: string; chroma_path?: string };
    const model = async () => (JSON.parse(await json.inputValue()) as { model?: Model }).model;
    await until(async () => (await model())?.path?.endsWith("flux1-dev.safetensors") === true);
    assert.ok(!(await model())?.chroma_path, "FLOW's key for Chroma is cleared");
    await page.getByText("CLIP", { exact: true }).waitFor();
    await page.locator('[data-field="model.clip_path"]').waitFor();
  } finally {
    rmSync(path);
  }
});

test("a LoRA opens the form with its settings, and is deleted after one confirmation", async () => {
  const path = join(studio.home, "models", "mine.safetensors");
  writeAdapter(path, { "flowloom.config": JSON.stringify(config) });
  const page = await open("/models/");
  await page.getByRole("button", { name: "Train with the settings of mine.safetensors" }).click();
  await page.waitForURL(/flow-training/);
  const report = page.getByRole("dialog", { name: "Import mine.safetensors" });
  await report.getByText("Found the settings this file was trained with.").waitFor();
  await report.getByRole("button", { name: "Import" }).click();
  const json = page.getByLabel(/Configuration as JSON/);
  const steps = async () => (JSON.parse(await json.inputValue()) as typeof config).limits?.max_steps;
  await until(async () => (await steps()) === config.limits?.max_steps);

  await page.goto(`${studio.url}/models/`);
  await page.getByRole("button", { name: "Delete mine.safetensors" }).click();
  await page.getByRole("button", { name: "Delete", exact: true }).click();
  await page.getByText("mine.safetensors deleted.").waitFor();
  assert.ok(!existsSync(path));
  await page.getByRole("button", { name: "Delete mine.safetensors" }).waitFor({ state: "detached" });
});

test("a file that a run needs to resume is deleted only after a second confirmation", async () => {
  const path = join(studio.home, "models", "needed.safetensors");
  copyFileSync(join(studio.home, "models", "demo", "chroma.safetensors"), path);
  const model = { ...config.model, chroma_path: path };
  await studio.post("/api/flow/train/start", { name: "cut-off", config: { ...config, model } });
  await studio.quiet();
  const page = await open("/models/");
  await page.getByRole("button", { name: "Delete needed.safetensors" }).click();
  await page.getByRole("button", { name: "Delete", exact: true }).click();
  await page.getByRole("alert").filter({ hasText: "cut-off" }).waitFor();
  assert.ok(existsSync(path));
  await page.getByRole("button", { name: "Delete anyway" }).click();
  await page.getByText("needed.safetensors deleted.").waitFor();
  assert.ok(!existsSync(path));
});

test("a log is searched forwards and backwards, loaded completely, and downloaded", async () => {
  const lines = Array.from({ length: 4000 }, (_, index) => `line ${index} of the output of a process`);
  const text = `${lines.join("\n")}\n`;
  writeFileSync(join(studio.home, "runs", "first", "log.txt"), text);
  const page = await open("/runs/?id=first");
  await page.getByRole("tab", { name: "Log" }).click();
  await page.getByLabel("Search the log").fill("LINE 12 ");
  await page.getByText("no matches").waitFor();
  await page.getByRole("button", { name: "Load all" }).click();
  await page.getByText("1 of 1", { exact: true }).waitFor();
  await page.getByLabel("Search the log").fill("line 39");
  await page.getByText("1 of 111", { exact: true }).waitFor();
  await page.keyboard.press("Shift+Enter");
  await page.getByText("111 of 111", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Next match" }).click();
  await page.getByText("1 of 111", { exact: true }).waitFor();
  assert.ok(await page.locator("mark[aria-current]").isVisible());
  const saved = page.waitForEvent("download");
  await page.getByRole("button", { name: "Download", exact: true }).click();
  assert.equal(readFileSync(await (await saved).path(), "utf8"), text);
});

test("the doctor's checks appear in settings and in the report", async () => {
  const page = await open("/settings/");
  await page.getByRole("button", { name: "Run checks" }).click();
  const found = page.getByRole("listitem").filter({ hasText: /^python/ });
  await found.waitFor();
  assert.match((await found.textContent()) ?? "", /python 3\.\d+\.\d+ at /);
});

test("base models are cards, selected with the arrow keys", async () => {
  const page = await open("/flow-training/");
  const cards = page.getByRole("radiogroup", { name: "Base model" }).getByRole("radio");
  await until(async () => (await cards.count()) > 1);
  await cards.first().check();
  const path = page
    .getByRole("textbox", { name: "Chroma path" })
    .or(page.getByRole("combobox", { name: "Chroma path" }));
  const first = await path.inputValue();
  await page.keyboard.press("ArrowDown");
  assert.ok(await cards.nth(1).isChecked());
  await until(async () => (await path.inputValue()) !== first);
});

test("home lists training runs; a missing dataset shows a message and nothing else", async () => {
  const page = await open("/");
  await page
    .getByRole("link", { name: /^first/ })
    .first()
    .waitFor();
  assert.equal(
    await page
      .getByRole("main")
      .getByRole("link", { name: /^sample-/ })
      .count(),
    0,
  );
  await page.goto(`${studio.url}/datasets/?name=nothing`);
  await page.getByText("Dataset not found").waitFor();
  assert.equal(await page.getByLabel("Files to upload").count(), 0);
  assert.equal(await page.locator("main [aria-hidden=true].rounded.bg-muted").count(), 0);
});

const MAKE_CLIP = `
import sys
from pathlib import Path
import numpy as np
from flowloom.engine.clips import Clip, save_generated
frames = np.zeros((5, 64, 96, 3), np.uint8)
frames[...] = np.arange(5)[:, None, None, None] * 50
save_generated(Clip(frames, 10.0), Path(sys.argv[1]), "00", "png", "webm")
`;

test("a generated clip shows its poster, plays, and is stepped frame by frame", async () => {
  const folder = join(studio.home, "runs", "first", "samples", "step_00000009");
  mkdirSync(folder);
  execFileSync(process.env.FLOWLOOM_PYTHON ?? "python3", ["-c", MAKE_CLIP, folder], {
    env: { ...process.env, PYTHONPATH: `${ROOT}/src` },
  });
  const record = {
    file: "00.webm",
    poster: "00.poster.png",
    prompt: "grey",
    seed: 1,
    num_frames: 5,
    fps: 10,
  };
  writeFileSync(join(folder, "samples.json"), JSON.stringify([record]));
  const page = await open("/runs/?id=first");
  const cell = page.getByRole("button", { name: "grey, step 9" });
  await cell.locator("img").waitFor();
  await cell.click();
  const video = page.getByRole("dialog").locator("video");
  await video.waitFor();
  const at = () =>
    video.evaluate((player: HTMLVideoElement) => ({
      isReady: player.readyState >= 2 && !player.seeking,
      size: [player.videoWidth, player.videoHeight],
      duration: player.duration,
      frame: Math.floor(player.currentTime * 10),
    }));
  await until(async () => (await at()).isReady);
  assert.deepEqual((await at()).size, [96, 64]);
  assert.ok(Math.abs((await at()).duration - 0.5) < 0.11);
  await video.evaluate((player: HTMLVideoElement) => {
    player.pause();
    player.currentTime = 0;
  });
  await until(async () => (await at()).frame === 0);
  for (const frame of [1, 2]) {
    await page.getByRole("button", { name: "Next frame" }).click();
    await until(async () => (await at()).isReady && (await at()).frame === frame);
  }
  // The brightness of what is shown is that of the frame.
  const shown = await video.evaluate((player: HTMLVideoElement) => {
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("2d") as CanvasRenderingContext2D;
    context.drawImage(player, 0, 0);
    return context.getImageData(4, 4, 1, 1).data[0] as number;
  });
  assert.ok(Math.abs(shown - 100) < 12, `${shown}`);
  const part = await page.request.get(`${studio.url}/api/runs/first/samples/step_00000009/00.webm`, {
    headers: { range: "bytes=0-9" },
  });
  assert.equal(part.status(), 206);
  assert.equal(part.headers()["content-type"], "video/webm");
  assert.equal((await part.body()).length, 10);
  await page.close();
});

test("a bucket is tested, created and browsed", async (context) => {
  const image = readdirSync(join(studio.home, "data", "demo")).find((name) => name.endsWith(".png")) ?? "";
  const store = spawn(
    process.env.FLOWLOOM_PYTHON ?? "python3",
    [join(import.meta.dirname, "store.py"), join(studio.home, "data", "demo", image)],
    {
      cwd: ROOT,
      env: { ...process.env, PYTHONPATH: `${ROOT}/src:${ROOT}` },
      stdio: ["pipe", "pipe", "pipe"],
    },
  );
  const errors: string[] = [];
  store.stderr.on("data", (data: Buffer) => errors.push(String(data)));
  const ended = new Promise<string>((done) => store.once("exit", () => done("")));
  const line = await Promise.race([
    new Promise<string>((done) => createInterface({ input: store.stdout }).once("line", done)),
    ended,
  ]);
  if (!line && /no command 'weed'/.test(errors.join(""))) return context.skip("SeaweedFS is not here");
  assert.ok(line, errors.join(""));
  const address = JSON.parse(line) as Record<string, string>;
  process.env.AWS_ACCESS_KEY_ID = address.access_key_id;
  process.env.AWS_SECRET_ACCESS_KEY = address.secret_access_key;
  process.env.FLOWLOOM_PRIVATE_HOSTS = "127.0.0.1";
  const cloud = await new Studio().start();
  try {
    const page = await open("/datasets/", cloud);
    await page.getByRole("button", { name: "New dataset" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Name", { exact: true }).fill("cloud");
    const where = dialog.getByLabel("Source (optional)");
    await where.fill("s3://absent/fox");
    await dialog.getByLabel("Endpoint").fill(address.endpoint ?? "");
    await dialog.getByRole("button", { name: "Test connection" }).click();
    const answer = dialog.getByRole("status");
    assert.match(String(await until(() => answer.textContent())), /Correct the name of the bucket/);
    await where.fill(address.url ?? "");
    await dialog.getByRole("button", { name: "Test connection" }).click();
    await dialog.getByText("Connected. First object:").waitFor();
    await dialog.getByRole("button", { name: "Create" }).click();
    await page.waitForURL(/name=cloud/);
    await page.getByRole("button", { name: "0.png" }).click();
    const shown = page.getByLabel("Caption").getByRole("img");
    await until(() => shown.evaluate((image) => (image as HTMLImageElement).naturalWidth > 0));
    assert.equal(await page.getByLabel("Caption").getByRole("textbox").inputValue(), "a fox in the bucket");
    assert.ok(
      !readFileSync(join(cloud.home, "server.log"), "utf8").includes(address.secret_access_key ?? "?"),
    );
  } finally {
    await cloud.clear();
    store.stdin.end();
    await ended;
  }
});

test("a card's memory plan, a table of cards and a cluster's fields fit a phone", async () => {
  const page = await open("/flow-training/");
  await page.setViewportSize({ width: 390, height: 844 });
  const json = page.getByLabel(/Configuration as JSON/);
  await json.fill(JSON.stringify({ ...config, memory: { checkpointed_blocks: 2 } }));
  await page.getByText("Ready to train").waitFor();
  await page.getByLabel("Device to check").selectOption("12 GB card");
  await page.getByRole("button", { name: "Check memory, time and data" }).click();
  const plan = page.getByRole("region", { name: "Memory plan" });
  await plan.getByRole("cell", { name: "recomputes 2" }).waitFor();
  await plan.getByText(/assumed, not measured/).waitFor();
  await page.getByRole("button", { name: "Compare cards of 8 to 80 GB" }).click();
  const cards = page.getByRole("region", { name: "Cards of 8 to 80 GB" });
  await cards.getByRole("button", { name: "Full" }).click();
  assert.equal(await cards.getByRole("rowheader").count(), 7);

  const start = page.getByRole("button", { name: "Start training" });
  await page.getByRole("checkbox", { name: "Slurm: gpu-long-queue partition" }).check();
  await page.getByLabel("Machines").fill("2");
  await page.getByLabel("GPUs of each").fill("8");
  await page.getByLabel("Options").fill("output=/etc/passwd");
  await page.getByText(/^output cannot be set here/).waitFor();
  assert.ok(await start.isDisabled());
  await page.getByLabel("Options").fill("time=1:00:00");
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  const request = page.waitForRequest(/train\/start$/);
  await page.route(/train\/start$/, (route) => route.abort());
  await start.click();
  const { devices, launch: machines } = (await request).postDataJSON();
  assert.deepEqual(devices, ["slurm:gpu-long-queue"]);
  assert.deepEqual(machines, { nodes: 2, gpus: 8, options: { time: "1:00:00" } });
  await page.close();
});
