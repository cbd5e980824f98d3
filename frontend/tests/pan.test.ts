import { expect, test } from "vitest";
import { moved } from "@/components/run/pan";

test("what is shown moves on, keeps its width, and stays within what there is", () => {
  expect(moved([100, 200], 50, [0, 1000])).toEqual([150, 250]);
  expect(moved([100, 200], -500, [0, 1000])).toEqual([0, 100]);
  expect(moved([100, 200], 5000, [0, 1000])).toEqual([900, 1000]);
  expect(moved([0, 1000], 30, [0, 1000])).toEqual([0, 1000]);
});
