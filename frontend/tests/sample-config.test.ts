import { expect, test } from "vitest";
import { hasAverage, sampleConfig } from "@/lib/sample-config";

test("checkpoints are sampled with the run's own settings, over a grid", () => {
  const config = {
    inference: { prompts: ["fox"], image_dim: [512, 768], steps: 20, cfg: 4 },
    training: { master_seed: 7 },
    preview: { sampler: "heun" },
    ema: { decay: 0.99 },
  };
  const grid = { source_paths: ["/a", "/b"] };
  expect(sampleConfig(config, grid)).toEqual({
    prompts: ["fox"],
    steps: 20,
    cfg: 4,
    width: 512,
    height: 768,
    seed: 7,
    sampler: "heun",
    grid,
  });
  expect(hasAverage(config)).toBe(true);
});

test("a run without prompts is sampled with an empty one", () => {
  expect(sampleConfig({}, {})).toEqual({ prompts: [""], grid: {} });
  expect(hasAverage({ ema: { decay: null } })).toBe(false);
});
