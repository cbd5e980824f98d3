/** Measure a running studio: `node e2e/figures.ts URL RUN LONG_RUN`, where LONG_RUN has many steps and samples. */
import type { Page } from "playwright-core";
import { launch } from "./browser.ts";

const [url = "", run = "", long = ""] = process.argv.slice(2);
const browser = await launch();
const round = (value: number, digits = 0) => Number(value.toFixed(digits));

async function fresh(): Promise<Page> {
  const page = await (await browser.newContext({ viewport: { width: 1440, height: 900 } })).newPage();
  await page.addInitScript(() => {
    const kept = window as unknown as { shift: number; busy: number };
    kept.shift = 0;
    kept.busy = 0;
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) kept.shift += (entry as unknown as { value: number }).value;
    }).observe({ type: "layout-shift", buffered: true });
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) kept.busy = entry.startTime + entry.duration;
    }).observe({ type: "longtask", buffered: true });
  });
  return page;
}

/** The time until the page is interactive: after its first paint and its last task of more than 50 ms. */
async function interactive(page: Page, what: string): Promise<number> {
  await page.getByText(what).first().waitFor();
  await page.waitForTimeout(2500);
  return page.evaluate(() => {
    const painted = performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0;
    return Math.max(painted, (window as unknown as { busy: number }).busy);
  });
}

/** Frames per second while `move` repeats, and the longest frame in milliseconds. */
async function frames(page: Page, move: (index: number) => Promise<void>): Promise<[number, number]> {
  await page.evaluate(() => {
    const kept = window as unknown as { times: number[] };
    kept.times = [];
    const tick = (time: number) => {
      kept.times.push(time);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  });
  for (let index = 0; index < 120; index += 1) await move(index);
  const times = await page.evaluate(() => (window as unknown as { times: number[] }).times);
  const gaps = times.slice(1).map((time, index) => time - (times[index] ?? time));
  const span = (times[times.length - 1] ?? 0) - (times[0] ?? 0);
  return [round((1000 * gaps.length) / span, 1), round(Math.max(...gaps))];
}

const home = await fresh();
await home.goto(url);
const homeReady = await interactive(home, "This machine");
const script = await home.evaluate(() =>
  (performance.getEntriesByType("resource") as PerformanceResourceTiming[])
    .filter((entry) => entry.name.endsWith(".js"))
    .reduce((sum, entry) => sum + entry.encodedBodySize, 0),
);
const shift = await home.evaluate(() => (window as unknown as { shift: number }).shift);

const one = await fresh();
await one.goto(`${url}/runs/?id=${run}`);
const runReady = await interactive(one, "Metrics");

const page = await fresh();
const began = Date.now();
await page.goto(`${url}/runs/?id=${long}`);
await page.locator("canvas").first().waitFor();
const chart = Date.now() - began;
await page.locator('img[src*="/samples/"]').first().waitFor();
const samples = Date.now() - began;
await page.waitForTimeout(3000);
const plot = await page.locator("canvas").first().boundingBox();
const { x = 0, y = 0, width = 0, height = 0 } = plot ?? {};
await page.mouse.move(x + width * 0.4, y + height / 2);
await page.mouse.down();
await page.mouse.move(x + width * 0.5, y + height / 2, { steps: 4 });
await page.mouse.up();
await page.getByRole("button", { name: "Reset zoom" }).waitFor();
await page.waitForTimeout(1500);
const pan = await frames(page, (index) => page.mouse.wheel(index % 60 < 30 ? 12 : -12, 0));
const wall = page.locator(".overflow-x-auto:has(img[src*='/samples/'])");
await wall.scrollIntoViewIfNeeded();
const scroll = await frames(page, async (index) => {
  await wall.evaluate((element, at) => {
    element.scrollLeft = at;
  }, index * 300);
});
console.log(
  JSON.stringify(
    {
      home: { script_bytes: script, interactive_ms: round(homeReady), layout_shift: round(shift, 4) },
      run: { interactive_ms: round(runReady) },
      long_run: { chart_ms: chart, samples_ms: samples },
      chart_frames_per_s: { mean: pan[0], longest_ms: pan[1] },
      samples_frames_per_s: { mean: scroll[0], longest_ms: scroll[1] },
    },
    null,
    1,
  ),
);
await browser.close();
