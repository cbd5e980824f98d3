import { expect, test } from "vitest";
import type { Sample } from "@/lib/api/client";
import { axesOf, cellsOf, keyOf } from "@/lib/xy-grid";

const sample = (file: string, prompt: string, settings: Sample["settings"]): Sample => ({
  file,
  step: 0,
  url: file,
  prompt,
  seed: 1,
  settings,
});

const grid = [
  sample("0003.png", "fox", { steps: 20, cfg: 4 }),
  sample("0001.png", "fox", { steps: 20, cfg: 1 }),
  sample("0000.png", "fox", { steps: 10, cfg: 1 }),
  sample("0002.png", "fox", { steps: 10, cfg: 4 }),
];

test("settings that differ are axes, in order of generation; the others are not", () => {
  expect(axesOf(grid)).toEqual([
    { name: "steps", values: ["10", "20"] },
    { name: "cfg", values: ["1", "4"] },
  ]);
});

test("every image has a cell, shared with those that differ in other settings", () => {
  expect(cellsOf(grid, "cfg", "steps").get(keyOf("4", "20"))).toEqual([grid[0]]);
  expect(cellsOf(grid, "cfg", null).get(keyOf("1", ""))).toHaveLength(2);
});
