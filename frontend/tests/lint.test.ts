import { expect, test } from "vitest";
import { findingsOf } from "@/components/datasets/work";

test("images that lint could not read are among its findings, each once", () => {
  const small = { kind: "small", line: 2, filename: "b.png", message: "1.4 times" };
  const damaged = { kind: "damaged", line: 3, filename: "c.png", message: "truncated" };
  const found = findingsOf({
    findings: [small, damaged],
    num_unusable: 2,
    unusable: [
      { place: "den/a.png", reason: "not an image" },
      { place: "c.png", reason: "truncated" },
    ],
  });
  expect(found).toEqual([
    { kind: "not usable", line: 0, filename: "den/a.png", message: "not an image" },
    small,
    damaged,
  ]);
  expect(findingsOf({})).toEqual([]);
});
