/** Captions and dialogs in a browser: the text in the editor and the focus. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { crc32, deflateSync } from "node:zlib";
import type { Browser, Page } from "playwright-core";
import { launch } from "./browser.ts";
import { Studio, until } from "./studio.ts";

let browser: Browser;
let studio: Studio;

/** A grey image of 16 x 16 as PNG. */
function png(grey: number): Buffer {
  const chunk = (kind: string, data: Buffer) => {
    const body = Buffer.concat([Buffer.from(kind), data]);
    const head = Buffer.alloc(4);
    head.writeUInt32BE(data.length);
    const sum = Buffer.alloc(4);
    sum.writeUInt32BE(crc32(body));
    return Buffer.concat([head, body, sum]);
  };
  const header = Buffer.from([0, 0, 0, 16, 0, 0, 0, 16, 8, 0, 0, 0, 0]);
  const rows = Buffer.concat(Array.from({ length: 16 }, () => Buffer.from([0, ...Array(16).fill(grey)])));
  const magic = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  return Buffer.concat([
    magic,
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(rows)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

before(async () => {
  browser = await launch();
  studio = await new Studio().start();
  const folder = join(studio.home, "data", "fox");
  mkdirSync(folder, { recursive: true });
  for (let index = 0; index < 120; index += 1) {
    writeFileSync(join(folder, `${String(index).padStart(3, "0")}.png`), png(index));
  }
});

after(async () => {
  await browser?.close();
  await studio?.clear();
});

const textOf = (name: string) => {
  const path = join(studio.home, "data", "fox", `${name}.txt`);
  return existsSync(path) ? readFileSync(path, "utf8").trim() : null;
};

async function open(): Promise<Page> {
  const page = await browser.newPage({ viewport: { width: 1366, height: 900 } });
  page.setDefaultTimeout(60_000);
  await page.goto(`${studio.url}/datasets/?name=fox`);
  return page;
}

test("an image whose new caption removes it from the list stays in the editor", async () => {
  const page = await open();
  await page.getByRole("button", { name: "No caption", exact: true }).click();
  await page.getByRole("button", { name: "000.png" }).click();
  const caption = page.getByLabel("Caption").getByRole("textbox");
  await caption.pressSequentially("a fox");
  await page.getByText("no longer in this list").waitFor();
  await caption.pressSequentially(" in snow");
  await until(() => textOf("000") === "a fox in snow");
  assert.equal(textOf("001"), null);
  await page.keyboard.press("Alt+ArrowRight");
  await page.getByLabel("Caption").getByText("001.png").waitFor();
  await page.close();
});

test("Next continues beyond the visible images", async () => {
  const page = await open();
  await page.getByRole("button", { name: "002.png" }).click();
  for (let index = 3; index < 115; index += 1) {
    await page.keyboard.press("Alt+ArrowRight");
    await page
      .getByLabel("Caption")
      .getByText(`${String(index).padStart(3, "0")}.png`)
      .waitFor({ timeout: 10_000 });
  }
  await page.getByRole("button", { name: "114.png", pressed: true }).waitFor();
  await page.close();
});

test("a dialog returns the focus to its menu, and a text selection does not close it", async () => {
  const page = await open();
  await page.getByRole("button", { name: "Tools" }).click();
  await page.getByRole("menuitem", { name: /Lint/ }).click();
  const field = page.getByLabel("Bucket resolutions");
  const box = await field.boundingBox();
  assert.ok(box);
  await page.mouse.move(box.x + 20, box.y + box.height / 2);
  await page.mouse.down();
  await page.mouse.move(5, box.y);
  await page.mouse.up();
  assert.ok(await field.isVisible());
  await page.keyboard.press("Escape");
  await until(() => page.evaluate(() => document.activeElement?.textContent === "Tools"));
  await page.close();
});
