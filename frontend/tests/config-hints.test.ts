import { expect, test } from "vitest";
import { hintsOf } from "@/lib/config-hints";

test("hints name a training without a limit or without samples, and nothing else", () => {
  const empty = { limits: { max_steps: null, max_epochs: null, max_minutes: null }, inference: null };
  expect(hintsOf(empty).map((hint) => hint.path)).toEqual(["limits.max_steps", "inference"]);
  expect(hintsOf({ limits: { max_epochs: 3 }, inference: { prompts: ["a fox"] } })).toEqual([]);
});
