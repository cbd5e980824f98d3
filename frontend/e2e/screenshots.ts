/** PATH ...`, three sizes, two themes.=Screenshots: `node e2e/screenshots.ts URL FOLDER NAME=PATH ...`, three sizes, two themes.=PATH ...`, three sizes, two themes. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { launch } from "./browser.ts";

const SIZES = { phone: [390, 844], laptop: [1440, 900], wall: [3840, 2160] } as const;

const [url = "", folder = "", ...pages] = process.argv.slice(2);
const only = process.env.ONLY?.split(",");
mkdirSync(folder, { recursive: true });
const browser = await launch();
for (const theme of ["light", "dark"]) {
  for (const [size, [width, height]] of Object.entries(SIZES)) {
    if (only && !only.includes(size) && !only.includes(theme) && !only.includes(`${size}-${theme}`)) continue;
    const context = await browser.newContext({ viewport: { width, height } });
    await context.addInitScript((name) => localStorage.setItem("flowloom.theme", name), theme);
    const page = await context.newPage();
    page.on("console", (message) => message.type() === "error" && console.error("console:", message.text()));
    page.on("pageerror", (error) => console.error("page:", error.message));
    for (const argument of pages) {
      const [name, ...path] = argument.split("=");
      await page.goto(url + path.join("="));
      await page.waitForTimeout(Number(process.env.SETTLE_MS ?? 2500));
      await page.screenshot({ path: join(folder, `${name}-${size}-${theme}.png`), fullPage: true });
    }
    await context.close();
  }
}
await browser.close();
