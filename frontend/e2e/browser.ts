import { existsSync } from "node:fs";
import { type Browser, chromium } from "playwright-core";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** The system's Chromium; none is downloaded. `FLOWLOOM_CHROMIUM` selects another one. */
export function launch(): Promise<Browser> {
  const path = process.env.FLOWLOOM_CHROMIUM ?? PLACES.find((place) => existsSync(place));
  if (!path)
    throw new Error("No Chromium was found: install the package `chromium`, or set FLOWLOOM_CHROMIUM.");
  return chromium.launch({
    executablePath: path,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--no-first-run",
    ],
  });
}
