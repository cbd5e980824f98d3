import { expect, test } from "vitest";
import { findAll, segments, wrapIndex } from "@/lib/highlight";

test("a query is found literally, ignoring case", () => {
  const text = "İ step 1\nStep (2)\nstep (3)";
  expect(findAll(text, "step").map((hit) => hit.at)).toEqual([2, 9, 18]);
  expect(findAll(text, "STEP (").map((hit) => hit.at)).toEqual([9, 18]);
  expect(findAll(text, "")).toEqual([]);
  expect(findAll(text, "(.*)")).toEqual([]);
});

test("next and previous wrap around", () => {
  expect([wrapIndex(0, -1, 3), wrapIndex(2, 1, 3), wrapIndex(0, 1, 0)]).toEqual([2, 0, 0]);
});

test("a text is split at its matches and loses nothing", () => {
  const text = "a fox, a Fox, and";
  const cut = segments(text, findAll(text, "fox"), 0);
  expect(cut.map((piece) => piece.hit)).toEqual([null, 0, null, 1, null]);
  expect(cut.map((piece) => piece.text).join("")).toBe(text);
});

test("of thousands of matches, those near the current one are marked with their numbers", () => {
  const text = "x ".repeat(5000);
  const cut = segments(text, findAll(text, "x"), 3000, 10);
  const marked = cut.flatMap((piece) => piece.hit ?? []);
  expect(marked).toEqual([2995, 2996, 2997, 2998, 2999, 3000, 3001, 3002, 3003, 3004]);
  expect(cut.map((piece) => piece.text).join("")).toBe(text);
});
