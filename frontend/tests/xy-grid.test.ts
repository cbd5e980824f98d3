import { expect, test } from "vitest";
import type { Sample } from "@/lib/api/client";
import { axesOf, cellsOf, keyOf } from "@/lib/xy-grid";

const drawn = (file: string, prompt: string, settings: Record<string, unknown>): Sample => ({
  file,
  step: 0,
  url: file,
  prompt,
  seed: 1,
  settings,
});

const grid = [
  drawn("0003.png", "fox", { steps: 20, cfg: 4 }),
  drawn("0001.png", "fox", { steps: 20, cfg: 1 }),
  drawn("0000.png", "fox", { steps: 10, cfg: 1 }),
  drawn("0002.png", "fox", { steps: 10, cfg: 4 }),
];

test("what differs is an axis, in the order in which it was drawn; the rest is none", () => {
  expect(axesOf(grid)).toEqual([
    { name: "steps", values: ["10", "20"] },
    { name: "cfg", values: ["1", "4"] },
  ]);
});

test("every picture has its place, and those of further settings share one", () => {
  expect(cellsOf(grid, "cfg", "steps").get(keyOf("4", "20"))).toEqual([grid[0]]);
  expect(cellsOf(grid, "cfg", null).get(keyOf("1", ""))).toHaveLength(2);
});
