/** The studio with a real browser, a real service and real training. */
import assert from "node:assert/strict";
import { copyFileSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { launch } from "./browser.ts";
import { Studio, until } from "./studio.ts";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const MOST_SCRIPT_BYTES = 250_000;
const PATIENCE_MS = Number(process.env.FLOWLOOM_PATIENCE_MS ?? 180_000);
const MOST_SHIFT = 0.05;

let browser: Browser;
let studio: Studio;
let config: Record<string, Record<string, unknown>>;
const contexts: BrowserContext[] = [];

before(async () => {
  browser = await launch();
  studio = await new Studio().start();
  config = await studio.trained("first");
});

afterEach(async () => {
  await studio.quiet();
  for (const context of contexts.splice(0)) await context.close();
});

after(async () => {
  await browser?.close();
  await studio?.clear();
});

/** A page whose errors fail the test. */
async function open(path: string, where = studio): Promise<Page> {
  const context = await browser.newContext({ viewport: { width: 1366, height: 900 } });
  contexts.push(context);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.on("pageerror", (error) => {
    throw error;
  });
  await page.goto(where.url + path);
  return page;
}

const stateOf = async (id: string) => (await studio.get<{ state: string }>(`/api/runs/${id}`)).state;

async function violations(page: Page): Promise<string[]> {
  await page.addScriptTag({ content: AXE }).catch(() => page.evaluate(AXE));
  const found = await page.evaluate(async () => {
    const { axe } = window as unknown as {
      axe: { run: (options: object) => Promise<{ violations: Found[] }> };
    };
    interface Found {
      id: string;
      impact: string;
      nodes: { html: string }[];
    }
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
    const result = await axe.run({ runOnly: tags });
    return result.violations.map(
      (each) =>
        `${each.impact} ${each.id}: ${each.nodes.map((node) => node.html.slice(0, 160)).join("\n   ")}`,
    );
  });
  return found.filter((each) => /^(serious|critical)/.test(each));
}

for (const path of [
  "/",
  "/runs/",
  "/runs/?id=first",
  "/flow-training/",
  "/kohya-training/",
  "/datasets/",
  "/models/",
  "/playground/",
  "/settings/",
]) {
  test(`${path} is accessible in both themes`, async () => {
    for (const theme of ["light", "dark"]) {
      const context = await browser.newContext({ viewport: { width: 1366, height: 900 }, bypassCSP: true });
      contexts.push(context);
      await context.addInitScript((name) => localStorage.setItem("flowloom.theme", name), theme);
      const page = await context.newPage();
      await page.goto(studio.url + path);
      await page.waitForSelector("h1");
      await page.waitForTimeout(1200);
      assert.deepEqual(await violations(page), [], `${path}, ${theme}`);
    }
  });
}

test("the checkpoint dialog is accessible and fits a phone", async () => {
  const models = join(studio.home, "models");
  const long = join(models, `${"a-name-of-many-words-".repeat(5)}.safetensors`);
  copyFileSync(join(models, "demo", "chroma.safetensors"), long);
  for (const theme of ["light", "dark"]) {
    const context = await browser.newContext({ viewport: { width: 390, height: 844 }, bypassCSP: true });
    contexts.push(context);
    await context.addInitScript((name) => localStorage.setItem("flowloom.theme", name), theme);
    const page = await context.newPage();
    await page.goto(`${studio.url}/playground/`);
    await page.getByRole("button", { name: "Choose checkpoints" }).first().click();
    const dialog = page.getByRole("dialog", { name: "Choose checkpoints" });
    await dialog.locator("summary", { hasText: "Models" }).click();
    await dialog.getByRole("checkbox").last().check();
    assert.deepEqual(await violations(page), [], theme);
    const beyond = await dialog.evaluate(
      (box) =>
        [...box.querySelectorAll("*")]
          .filter((part) => part.scrollWidth > part.clientWidth + 1)
          .filter((part) => getComputedStyle(part).overflowX === "auto").length,
    );
    assert.equal(beyond, 0, "nothing is to be scrolled sideways");
  }
  rmSync(long);
});

test("the first load is small, without layout shifts", async () => {
  const context = await browser.newContext({ viewport: { width: 1366, height: 900 } });
  contexts.push(context);
  const page = await context.newPage();
  await page.addInitScript(() => {
    const kept = window as unknown as { shift: number };
    kept.shift = 0;
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) kept.shift += (entry as unknown as { value: number }).value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  await page.goto(studio.url);
  await page.getByRole("heading", { name: "This machine" }).waitFor();
  await page.getByRole("link", { name: /first/ }).first().waitFor();
  await page.waitForTimeout(1000);
  const scripts = await page.evaluate(() =>
    (performance.getEntriesByType("resource") as PerformanceResourceTiming[])
      .filter((entry) => entry.name.endsWith(".js"))
      .reduce((sum, entry) => sum + entry.encodedBodySize, 0),
  );
  assert.ok(scripts > 0 && scripts < MOST_SCRIPT_BYTES, `${scripts} bytes of compressed script`);
  const shift = await page.evaluate(() => (window as unknown as { shift: number }).shift);
  assert.ok(shift < MOST_SHIFT, `layout shift of ${shift}`);
});

test("nothing is fetched from other hosts", async () => {
  const context = await browser.newContext();
  contexts.push(context);
  const page = await context.newPage();
  const asked: string[] = [];
  page.on("request", (request) => asked.push(request.url()));
  for (const path of ["/", "/runs/?id=first", "/flow-training/"]) {
    await page.goto(studio.url + path);
    await page.waitForTimeout(800);
  }
  assert.deepEqual(
    asked.filter(
      (url) => !url.startsWith(studio.url) && !url.startsWith("data:") && !url.startsWith("blob:"),
    ),
    [],
  );
});

test("first visit, demo, samples on screen; stop; the server restarts; resume", async () => {
  const page = await open("/");
  await page.getByRole("button", { name: "Try the demo" }).click();
  await page.waitForURL(/\/runs\/\?id=demo/);
  const id = new URL(page.url()).searchParams.get("id") ?? "";
  await page.getByRole("heading", { level: 1, name: id }).waitFor();
  await page.getByRole("button", { name: "Sample now" }).click();
  await page.locator(`img[src*="/api/runs/${id}/samples/"]`).first().waitFor();
  await page.getByRole("button", { name: "Save and stop" }).click();
  await page.getByText("Stopped", { exact: true }).first().waitFor();
  await page
    .getByText(/^step_\d{8}$/)
    .first()
    .waitFor();

  await studio.end("SIGKILL");
  await studio.start();
  await page.getByRole("button", { name: "Resume" }).click();
  await page.getByText("Running", { exact: true }).first().waitFor();
  const before = (await studio.get<{ step: number }>(`/api/runs/${id}`)).step;
  await until(async () => (await studio.get<{ step: number }>(`/api/runs/${id}`)).step > before + 2);
  await page.getByRole("button", { name: "More" }).click();
  await page.getByRole("menuitem", { name: "Stop now" }).click();
  await page.getByRole("button", { name: "Stop now", exact: true }).click();
  await until(async () => (await stateOf(id)) !== "running" && (await stateOf(id)) !== "stopping");
});

test("two tabs follow a run across a lost connection", async () => {
  await studio.post("/api/tasks/demo/start", { name: "both", config: { limits: { max_minutes: 3 } } });
  const pages = [await open("/runs/?id=both"), await open("/runs/?id=both")];
  const stepOn = async (page: Page) =>
    Number(((await page.locator("dl dd").first().textContent()) ?? "").replace(/\D.*$/s, ""));
  await until(async () => (await Promise.all(pages.map(stepOn))).every((step) => step >= 2));
  await studio.end("SIGKILL");
  await pages[0]?.getByText("Connection lost").waitFor();
  await studio.start();
  const { step } = await studio.get<{ step: number }>("/api/runs/both");
  await until(async () => (await Promise.all(pages.map(stepOn))).every((shown) => shown > step));
  await studio.post("/api/runs/both/kill", {});
  for (const page of pages) await page.getByText("Stopped", { exact: true }).first().waitFor();
});

test("a queue is paused, keeps its runs, and resumes", async () => {
  await studio.post("/api/tasks/demo/start", { name: "long", config: { limits: { max_minutes: 3 } } });
  await studio.post("/api/tasks/demo/start", { name: "behind", config: { limits: { max_steps: 2 } } });
  await until(async () => (await stateOf("long")) === "running");
  const page = await open("/runs/");
  await page.getByLabel("If a run fails").selectOption("pause");
  await until(async () => (await studio.get<{ on_fail: string }>("/api/queue")).on_fail === "pause");
  await page.getByRole("button", { name: "Pause queue", exact: true }).click();
  await page.getByRole("status").getByText("No new runs start until you resume the queue").waitFor();
  await studio.post("/api/runs/long/kill", {});
  await until(async () => (await stateOf("long")) === "stopped");
  assert.equal(await stateOf("behind"), "queued");
  await page.getByRole("button", { name: "Resume queue" }).click();
  await until(async () => (await stateOf("behind")) === "finished");
  await page.getByLabel("If a run fails").selectOption("continue");
  await page.getByRole("heading", { name: "Queue (0)" }).waitFor({ state: "detached" });
});

test("a FLOW file is imported, reported and started", async () => {
  const path = join(studio.home, "training_config.json");
  const { dataloader, model, inference, optimizer } = config;
  const file = {
    training: { master_seed: 7, train_minibatch: 4, lr: 1e-3, wandb_key: "not-a-real-key-0123" },
    inference: { ...inference, inference_every: 100 },
    dataloader: { ...dataloader, batch_size: 4 },
    model,
    optimizer,
    limits: { max_steps: 2 },
    parallel: { dtype: "fp32" },
  };
  writeFileSync(path, JSON.stringify(file));
  const page = await open("/flow-training/");
  await page.getByLabel("Configuration file").setInputFiles(path);
  const report = page.getByRole("dialog");
  await report.getByText("keys match fields of this form").waitFor();
  await report.getByText("Tokens are not imported (training.wandb_key)").waitFor();
  await report.getByText("Ready to train.").waitFor();
  await report.getByRole("button", { name: "Import" }).click();
  assert.equal(await page.getByLabel("Learning rate").inputValue(), "0.001");
  await page.reload();
  assert.equal(await page.getByLabel("Learning rate").inputValue(), "0.001", "the draft survives a reload");
  assert.ok(!JSON.stringify(await page.evaluate(() => ({ ...localStorage }))).includes("not-a-real-key"));
  await page.getByLabel("Run name").fill("imported");
  await page.getByText("Ready to train").waitFor();
  await page.getByRole("button", { name: "Start training" }).click();
  await page.waitForURL(/id=imported/);
  await page.getByText("Finished", { exact: true }).first().waitFor();
  assert.equal(await stateOf("imported"), "finished");
});

test("problems are shown at their fields, with the server's message", async () => {
  const page = await open("/flow-training/");
  const rate = page.getByLabel("Learning rate");
  await rate.fill("fast");
  const row = page.locator('[data-field="training.lr"]');
  await row.getByRole("alert").waitFor();
  assert.match((await row.getByRole("alert").textContent()) ?? "", /must be/);
  assert.ok(await page.getByRole("button", { name: "Start training" }).isDisabled());
  await rate.fill("2e-5");
  await row.getByRole("alert").waitFor({ state: "detached" });
  await row.getByRole("button", { name: /Reset to/ }).click();
  assert.equal(await rate.inputValue(), "1e-5");
});

test("form and JSON stay in sync", async () => {
  const page = await open("/flow-training/");
  const json = page.getByLabel(/Configuration as JSON/);
  await json.fill('{"training": {"lr": 0.5}, "optimizer": {"kind": "adamw8bit"}}');
  assert.equal(await page.getByLabel("Learning rate").inputValue(), "0.5");
  await page.getByLabel("Learning rate").fill("0.25");
  await until(async () => (await json.inputValue()).includes("0.25"));
  assert.match(await json.inputValue(), /adamw8bit/);
  await page.getByRole("radio", { name: /16 GB LoRA/ }).click();
  await until(async () => (await json.inputValue()).includes("rank"));
  assert.match(await json.inputValue(), /0\.25/, "values set by hand stay");
});

test("a studio with a token asks for it, or takes it from the URL", async () => {
  const guarded = await new Studio("--token", "open-sesame").start();
  try {
    const page = await open("/", guarded);
    await page.getByLabel("Token").fill("wrong");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByText("Wrong token.").waitFor();
    await page.getByLabel("Token").fill("open-sesame");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByText("No training runs yet").waitFor();
    const other = await open("/#token=open-sesame", guarded);
    await other.getByText("No training runs yet").waitFor();
    assert.ok(!other.url().includes("sesame"), "the token does not stay in the address");
  } finally {
    await guarded.clear();
  }
});

test("menus, dialogs and tabs work with the keyboard", async () => {
  const page = await open("/runs/?id=first");
  await page.getByRole("tab", { name: "Overview" }).focus();
  await page.keyboard.press("ArrowRight");
  await page.getByRole("log").or(page.getByText("The log is empty")).first().waitFor();
  await page.keyboard.press("ArrowRight");
  await page.getByRole("heading", { name: "Configuration" }).waitFor();
  await page.getByRole("button", { name: "More" }).press("Enter");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Escape");
  assert.equal(await page.getByRole("menu").count(), 0);
  await page.keyboard.press("Enter");
  await page.getByRole("menuitem", { name: "Duplicate" }).press("Enter");
  await page.getByRole("dialog").getByLabel("Name").waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "hidden" });
});

test("Kohya's form is built from its schema, with problems at their fields", async () => {
  const page = await open("/kohya-training/");
  await page.getByRole("radio", { name: /Chroma LoRA, 16 GB/ }).click();
  const sources = page.getByRole("list", { name: "Where the values of Chroma LoRA, 16 GB come from" });
  await sources
    .getByText(/^Documented.*docs\/flux_train_network\.md/)
    .first()
    .waitFor();
  await page.getByRole("heading", { name: "Preflight" }).waitFor();
  const base = page.locator('[data-field="model.pretrained_model_name_or_path"]');
  await base.getByText("is needed for Chroma.").waitFor();
  await base.getByRole("textbox").or(base.getByRole("combobox")).fill(String(config.model?.chroma_path));
  await base.getByText("is needed for Chroma.").waitFor({ state: "detached" });
  const json = page.getByLabel(/Configuration as JSON/);
  assert.match(await json.inputValue(), /fp8_base/);
  assert.match(await json.inputValue(), /chroma\.safetensors/);

  const shown = page.getByRole("tabpanel");
  await shown.getByText(`pretrained_model_name_or_path = "${String(config.model?.chroma_path)}"`).waitFor();
  await page.locator('[data-field="network.network_dim"] input').fill("24");
  await shown.getByText("network_dim = 24").waitFor();
});

test("Kohya's files are imported: two TOMLs, and the JSON of kohya_ss", async () => {
  const file = (name: string, ...lines: string[]) => {
    const path = join(studio.home, name);
    writeFileSync(path, lines.join("\n"));
    return path;
  };
  const page = await open("/kohya-training/");
  const report = page.getByRole("dialog");
  const input = page.getByLabel("Configuration file");
  const shown = page.getByRole("tabpanel");
  const set = ["[[datasets]]", "resolution = 768", "[[datasets.subsets]]"];
  await input.setInputFiles([
    file("dataset.toml", ...set, `image_dir = "${join(studio.home, "data", "demo")}"`, "num_repeats = 3"),
    file(
      "config.toml",
      `pretrained_model_name_or_path = "${join(studio.home, "models", "absent.safetensors")}"`,
      "learning_rate = 2e-4",
      "network_dim = 12",
      "ip_noise_gamma = 0.1",
    ),
  ]);
  await report.getByText("an sd-scripts configuration with datasets").waitFor();
  await report.getByText("ip_noise_gamma", { exact: true }).waitFor();
  await report.getByText("absent.safetensors").first().waitFor();
  await report.getByRole("button", { name: "Import" }).click();
  assert.equal(await page.locator('[data-field="network.network_dim"] input').inputValue(), "12");
  await shown.getByText("network_dim = 12").waitFor();
  await page.getByRole("tab", { name: "dataset.toml" }).click();
  await shown.getByText("num_repeats = 3").waitFor();

  const form = {
    LoRA_type: "Standard",
    network_dim: 40,
    learning_rate: "0.0003",
    noise_offset_type: "Original",
  };
  await input.setInputFiles(file("mine.json", JSON.stringify(form)));
  await report.getByText("a kohya_ss configuration").waitFor();
  await report.getByText("noise_offset_type").waitFor();
  await report.getByRole("button", { name: "Import" }).click();
  assert.equal(await page.locator('[data-field="network.network_dim"] input').inputValue(), "40");
});
