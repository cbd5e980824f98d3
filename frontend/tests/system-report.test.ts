import { expect, test } from "vitest";
import { failedFirst, withoutPaths } from "@/lib/system-report";

test("failed checks come first, the rest keeps its order", () => {
  const found = ["a", "b", "c"].map((name) => ({ name, text: "", is_ok: name !== "b" }));
  expect(failedFirst(found).map((each) => each.name)).toEqual(["b", "a", "c"]);
});

test.each([
  ["3.12.3 at /home/anna/.venv/bin/python", "3.12.3 at …"],
  ["120 GiB free at C:\\Users\\anna; less than 5 GiB", "120 GiB free at …; less than 5 GiB"],
  [
    "cannot be imported (/home/a/x.so: no file): run ./loom setup",
    "cannot be imported (…: no file): run ./loom setup",
  ],
  ["2.13.0+cpu, 8 CPU threads; 3 it/s", "2.13.0+cpu, 8 CPU threads; 3 it/s"],
])("a report holds no folders: %s", (text, kept) => expect(withoutPaths(text)).toBe(kept));
