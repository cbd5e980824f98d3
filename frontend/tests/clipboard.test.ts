import { afterEach, expect, test, vi } from "vitest";
import { copyText } from "@/lib/clipboard";

afterEach(() => vi.unstubAllGlobals());

/** A page of a studio that is reached by http from another machine: it has no clipboard. */
function insecurePage(copies: boolean) {
  const area = { value: "", style: {}, select: () => {}, remove: () => {} };
  vi.stubGlobal("navigator", {});
  vi.stubGlobal("document", {
    activeElement: null,
    body: { append: () => {} },
    createElement: () => area,
    execCommand: () => copies,
  });
  return area;
}

test("a text is copied where the browser has no clipboard for an address of the network", async () => {
  const area = insecurePage(true);
  await copyText("report");
  expect(area.value).toBe("report");
});

test("a failed copy says what to do", async () => {
  insecurePage(false);
  await expect(copyText("report")).rejects.toThrow("Ctrl+C");
});
