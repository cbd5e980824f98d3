import { expect, test } from "vitest";
import { hintsOf } from "@/lib/config-hints";

test("a training without an end and without samples is told of, and no other", () => {
  const bare = { limits: { max_steps: null, max_epochs: null, max_minutes: null }, inference: null };
  expect(hintsOf(bare).map((hint) => hint.path)).toEqual(["limits.max_steps", "inference"]);
  expect(hintsOf({ limits: { max_epochs: 3 }, inference: { prompts: ["a fox"] } })).toEqual([]);
});
