import { expect, test } from "vitest";
import { panned, zoomed } from "@/lib/chart-range";

test("a span pans by a share of its width and stays within the whole", () => {
  expect(panned([20, 40], 0.5, [0, 100])).toEqual([30, 50]);
  expect(panned([20, 40], -5, [0, 100])).toEqual([0, 20]);
  expect(panned([20, 40], 9, [0, 100])).toEqual([80, 100]);
});

test("a span zooms out around its middle until it covers the whole", () => {
  expect(zoomed([40, 60], 0.5, [0, 100])).toEqual([45, 55]);
  expect(zoomed([0, 20], 2, [0, 100])).toEqual([0, 40]);
  expect(zoomed([20, 80], 2, [0, 100])).toBeNull();
});
