import { afterEach, expect, test, vi } from "vitest";
import { copyText } from "@/lib/clipboard";

afterEach(() => vi.unstubAllGlobals());

/** A page served over plain HTTP from another machine: it has no clipboard API. */
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

test("text is copied without a clipboard API", async () => {
  const area = insecurePage(true);
  await copyText("report");
  expect(area.value).toBe("report");
});

test("a failed copy says what to do", async () => {
  insecurePage(false);
  await expect(copyText("report")).rejects.toThrow("Ctrl+C");
});
