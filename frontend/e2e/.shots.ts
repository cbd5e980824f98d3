import { launch } from "./browser.ts";
import { Studio } from "./studio.ts";

const out = process.argv[2];
const studio = new Studio();
const browser = await launch();
try {
  await studio.start();
  for (let i = 0; ; i++)
    try {
      await studio.trained("first", 3);
      break;
    } catch (e) {
      console.log(String(e).slice(0, 200));
      if (i > 2) throw e;
      if (/409/.test(String(e))) break;
    }
  for (const theme of ["light", "dark"])
    for (const path of [
      "/",
      "/runs/",
      "/runs/?id=first",
      "/flow-training/",
      "/kohya-training/",
      "/datasets/",
      "/datasets/?name=demo",
      "/models/",
      "/playground/",
      "/settings/",
    ]) {
      const context = await browser.newContext({ viewport: { width: 1366, height: 900 } });
      await context.addInitScript((wish) => localStorage.setItem("flowloom.theme", wish), theme);
      const page = await context.newPage();
      page.on("pageerror", (e) => console.log(path, String(e)));
      page.on("console", (m) => m.type() === "error" && console.log(path, m.text()));
      await page.goto(studio.url + path);
      await page.waitForSelector("h1", { timeout: 60000 });
      await page.waitForTimeout(2500);
      await page.screenshot({ path: `${out}/${theme}${path.replaceAll(/[^a-z]/g, "_")}.png` });
      await context.close();
    }
} finally {
  await browser.close();
  await studio.clear();
}
