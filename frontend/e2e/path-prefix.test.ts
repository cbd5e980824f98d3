/** The studio under a path prefix, through a real reverse proxy. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, request, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import { launch } from "./browser.ts";
import { Studio, until } from "./studio.ts";

const PATH = "/tools/studio";

let browser: Browser;
let studio: Studio;

before(async () => {
  browser = await launch();
  studio = await new Studio("--path", PATH).start();
  await studio.trained("first", 2);
});

after(async () => {
  await browser?.close();
  await studio?.clear();
});

/** Forwards requests under the prefix, with or without it; other paths belong to another program. */
async function proxy(isTakenAway: boolean): Promise<Server> {
  const { hostname, port } = new URL(studio.url);
  const server = createServer((asked, answer) => {
    if (!asked.url?.startsWith(`${PATH}/`) && asked.url !== PATH) {
      answer.writeHead(418).end("another program");
      return;
    }
    const path = isTakenAway ? asked.url.slice(PATH.length) || "/" : asked.url;
    const { method, headers } = asked;
    const passed = request({ hostname, port, path, method, headers }, (got) => {
      answer.writeHead(got.statusCode ?? 502, got.headers);
      got.pipe(answer);
    });
    passed.on("error", () => answer.destroy());
    answer.on("close", () => passed.destroy());
    asked.pipe(passed);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return server;
}

for (const isTakenAway of [false, true]) {
  test(`behind a proxy that ${isTakenAway ? "strips the prefix" : "keeps the prefix"}`, async () => {
    const server = await proxy(isTakenAway);
    const home = `http://127.0.0.1:${(server.address() as AddressInfo).port}${PATH}`;
    const page = await browser.newPage();
    page.setDefaultTimeout(180_000);
    const faults: string[] = [];
    page.on("response", (got) => {
      if (got.status() >= 400) faults.push(`${got.status()} ${got.url()}`);
    });
    page.on("pageerror", (error) => faults.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error") faults.push(message.text());
    });
    try {
      await page.goto(`${home}/`);
      await page.getByRole("link", { name: "Runs", exact: true }).click();
      await page.waitForURL(`${home}/runs/`);
      await page.getByRole("link", { name: "first" }).first().click();
      await page.waitForURL(`${home}/runs/?id=first`);
      await page.locator(`img[src^="${PATH}/api/runs/first/samples/"]`).first().waitFor();
      await page.reload();
      await page.getByRole("heading", { level: 1, name: "first" }).waitFor();

      // Streaming: a run's events.
      const name = `seen${Number(isTakenAway)}`;
      await studio.post("/api/tasks/demo/start", { name, config: { limits: { max_steps: 3 } } });
      await page.goto(`${home}/runs/?id=${name}`);
      await page.getByText("Finished", { exact: true }).first().waitFor();

      // Sending in parts: an upload, whose URL the studio returns.
      await page.getByRole("link", { name: "Datasets" }).click();
      await page.getByRole("button", { name: "New dataset" }).click();
      await page.getByRole("dialog").getByLabel("Name", { exact: true }).fill(name);
      await page.getByRole("button", { name: "Create" }).click();
      await page.waitForURL(`${home}/datasets/?name=${name}`);
      await page
        .getByLabel("Files to upload")
        .setInputFiles({ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("a fox") });
      await page.getByText("1 of 1 files").waitFor();
      await until(async () => (await studio.get<unknown[]>("/api/datasets")).length > 0);
      assert.deepEqual(faults, []);
    } finally {
      await page.close();
      server.closeAllConnections();
      server.close();
    }
  });
}
