/** From images on disk to a trained LoRA, all in the browser. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Browser, Page } from "playwright-core";
import { launch } from "./browser.ts";
import { Studio, until } from "./studio.ts";

let browser: Browser;
let studio: Studio;
let config: Record<string, Record<string, unknown>>;

before(async () => {
  browser = await launch();
  process.env.FLOWLOOM_PRIVATE_HOSTS = "127.0.0.1";
  studio = await new Studio().start();
  config = await studio.trained("first", 1);
});

after(async () => {
  await browser?.close();
  await studio?.clear();
});

async function open(path: string): Promise<Page> {
  const page = await browser.newPage({ viewport: { width: 1366, height: 900 } });
  page.setDefaultTimeout(180_000);
  await page.goto(studio.url + path);
  return page;
}

/** Some of the demo's images as a user's files. */
function someImages(count: number): string[] {
  const folder = join(studio.home, "mine");
  mkdirSync(folder);
  const names = readdirSync(join(studio.home, "data", "demo")).filter((name) => name.endsWith(".png"));
  return names.slice(0, count).flatMap((name, index) => {
    const path = join(folder, `${index}.png`);
    copyFileSync(join(studio.home, "data", "demo", name), path);
    if (index === 0) return [path];
    const caption = join(folder, `${index}.txt`);
    writeFileSync(caption, `drawing, number ${index}`);
    return [path, caption];
  });
}

test("upload, caption, edit many, JSONL, training", async () => {
  const page = await open("/datasets/");
  await page.getByRole("button", { name: "New dataset" }).click();
  await page.getByRole("dialog").getByLabel("Name", { exact: true }).fill("mine");
  await page.getByRole("button", { name: "Create" }).click();
  await page.waitForURL(/name=mine/);

  const junk = join(studio.home, "Thumbs.db");
  writeFileSync(junk, "junk");
  await page.getByLabel("Files to upload").setInputFiles([...someImages(6), junk]);
  await page.getByText("11 of 11 files").waitFor();
  await page.getByText(/^1 file skipped \(not images or captions\): Thumbs\.db$/).waitFor();
  assert.ok(existsSync(join(studio.home, "data", "mine", "5.png")));

  // The gallery loads while files arrive: wait for all, so that Next has a next image.
  await page.getByText(/^6 images, 5 with captions, [\d.]+ \w+$/).waitFor();

  await page.getByRole("button", { name: "0.png" }).click();
  await page.getByText(/^1 of 6/).waitFor();
  const caption = page.getByLabel("Caption").getByRole("textbox");
  await caption.fill("drawing, number 0");
  await page.getByText("Saved", { exact: true }).waitFor();
  await page.keyboard.press("Alt+ArrowRight");
  await until(async () => (await caption.inputValue()) === "drawing, number 1");

  await page.getByRole("button", { name: "Bulk edit captions" }).click();
  await page.getByLabel("Tags, comma-separated").fill("inked");
  await page.getByRole("button", { name: "Preview" }).click();
  await page.getByText("6 of 6 captions would change").waitFor();
  await page.getByRole("button", { name: "Apply to 6 captions" }).click();
  await page.getByText("6 captions changed.").waitFor();
  await page.getByText("Added “inked” at the start").waitFor();
  await page.keyboard.press("Escape");

  await page.getByRole("button", { name: "Tools" }).click();
  await page.getByRole("menuitem", { name: /Build JSONL/ }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Build JSONL" }).click();
  await page.getByText(/Created mine\.jsonl/).waitFor();
  await page.getByRole("button", { name: "Close", exact: true }).last().click();

  // The JSONL has the old captions: the folder's page, its card and the form say so.
  await page.getByRole("button", { name: "1.png" }).click();
  await caption.fill("edited after the JSONL was made");
  await page.getByText("Saved", { exact: true }).waitFor();
  await page.getByText(/mine\.jsonl is outdated: 1 row differs/).waitFor();
  await page.goto(`${studio.url}/datasets/`);
  const made = page.getByRole("list", { name: "JSONLs built from mine" });
  await made.getByText("outdated").waitFor();
  await page.goto(`${studio.url}/flow-training/`);
  await page.getByLabel("Dataset", { exact: true }).selectOption({ label: "mine.jsonl" });
  await page.getByText(/mine\.jsonl is outdated/).waitFor();
  await page.getByRole("button", { name: "Update", exact: true }).click();
  await page.getByText(/mine\.jsonl is outdated/).waitFor({ state: "detached" });
  const rows = () => readFileSync(join(studio.home, "data", "mine.jsonl"), "utf8");
  assert.match(rows(), /edited after the JSONL was made/);

  await page.goto(`${studio.url}/flow-training/`);
  await page.getByLabel("Dataset", { exact: true }).selectOption({ label: "mine" });
  await page.getByRole("radiogroup", { name: "Base model" }).getByRole("radio").first().check();
  const json = page.getByLabel(/Configuration as JSON/);
  const written = JSON.parse(await json.inputValue()) as Record<string, Record<string, unknown>>;
  const { base_resolution, resolution_step } = config.dataloader ?? {};
  await json.fill(
    JSON.stringify({
      ...written,
      dataloader: { ...written.dataloader, base_resolution, resolution_step },
      model: config.model,
      lora: { rank: 4, alpha: 4 },
      limits: { max_steps: 2 },
      parallel: { dtype: "fp32" },
    }),
  );
  await page.getByText("Ready to train").waitFor();
  await page.getByRole("button", { name: "Check memory, time and data" }).click();
  await page.getByText("steps per epoch").waitFor();
  await page.getByLabel("Run name").fill("mine lora/é");
  await page.getByText("Run name: letters, digits, . _ - only").waitFor();
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());
  await page.getByRole("button", { name: "Use mine-lora-e" }).click();
  await page.getByLabel("Run name").fill("mine-lora");
  await page.getByRole("button", { name: "Start training" }).click();
  await page.waitForURL(/id=mine-lora/);
  await page.getByText("Finished", { exact: true }).first().waitFor();
  const download = page.waitForEvent("download");
  await page
    .getByRole("link", { name: /adapter.*safetensors/ })
    .first()
    .click();
  assert.equal((await download).suggestedFilename(), "mine-lora-step_00000002-adapter.safetensors");
  const [kept = ""] = readdirSync(join(studio.home, "runs", "mine-lora", "data")).filter(
    (name) => name !== "rows.json",
  );
  const trained = readFileSync(join(studio.home, "runs", "mine-lora", "data", kept, "mine.jsonl"), "utf8");
  assert.match(trained, /edited after the JSONL was made/);
});

test("an exported LoRA is downloaded from its page", async () => {
  const source_path = join(studio.home, "runs", "mine-lora");
  await studio.post("/api/tasks/export/start", { name: "exported", config: { source_path } });
  const page = await open("/runs/?id=exported");
  const download = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download mine-lora-step_00000002-comfy.safetensors" }).click();
  assert.equal((await download).suggestedFilename(), "mine-lora-step_00000002-comfy.safetensors");
});

test("an archive at a URL becomes a dataset", async () => {
  const folder = join(studio.home, "data", "demo");
  const [name = ""] = readdirSync(folder).filter((each) => each.endsWith(".png"));
  const archive = execFileSync("tar", ["-czf", "-", "-C", folder, name]);
  const server = createServer((_, response) => response.end(archive)).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const page = await open("/datasets/");
    await page.getByRole("button", { name: "New dataset" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Name", { exact: true }).fill("imported");
    const { port } = server.address() as AddressInfo;
    await dialog.getByLabel("Source (optional)").fill(`http://127.0.0.1:${port}/one.tar.gz`);
    await dialog.getByRole("button", { name: "Import" }).click();
    await page.getByRole("link", { name: "Open imported" }).click();
    await page.waitForURL(/name=imported/);
    await page.getByText(/^1 image,/).waitFor();
    assert.ok(existsSync(join(studio.home, "data", "imported", name)));
  } finally {
    server.close();
  }
});

test("a folder is chosen directly in FLOW's and in Kohya's form", async () => {
  const page = await open("/flow-training/");
  const folder = join(studio.home, "data", "demo");
  await page.getByLabel("Dataset", { exact: true }).selectOption({ label: "demo" });
  for (const name of ["JSONL metadata path", "Image folder path"]) {
    const path = page.getByRole("textbox", { name });
    await until(async () => (await path.inputValue()) === folder);
  }
  await page.goto(`${studio.url}/kohya-training/`);
  await page.getByLabel("Dataset", { exact: true }).selectOption({ label: "demo" });
  const json = page.getByLabel(/Configuration as JSON/);
  await until(async () => (await json.inputValue()).includes(`"image_dir": "${folder}"`));
});
