import { expect, test } from "vitest";
import { framesPerSecond, frameTime } from "@/lib/clip-frames";

test("stepping visits every frame once and stops at both ends", () => {
  const [rate, duration] = [16, 5 / 16];
  const seen = [0];
  let time = 0;
  for (let i = 0; i < 6; i++) {
    time = frameTime(time, 1, rate, duration);
    seen.push(Math.floor(time * rate));
  }
  expect(seen).toEqual([0, 1, 2, 3, 4, 4, 4]);
  expect(frameTime(time, -1, rate, duration)).toBeCloseTo(3.5 / 16);
  expect(frameTime(0, -1, rate, duration)).toBeCloseTo(0.5 / 16);
});

test("a clip without a frame rate has the usual one", () => {
  expect(framesPerSecond({ settings: { fps: 24 } })).toBe(24);
  expect(framesPerSecond({ settings: {} })).toBe(16);
});
