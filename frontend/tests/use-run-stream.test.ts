import { describe, expect, test } from "vitest";
import type { RunEvent } from "@/hooks/use-run-events";
import { byNoiseLevel, columnsOf, notInMetrics, validationsOf, withNotes } from "@/hooks/use-run-stream";
import type { Metrics, Sample } from "@/lib/api/client";
import { FROM_BATCH, gridOf, mergeGrids, nearest, promptAt } from "@/lib/sample-grid";
import { smoothed } from "@/lib/smoothing";

type Step = Extract<RunEvent, { kind: "step" }>;

const step = (seq: number, number: number, loss: number | null, more: Partial<Step> = {}): Step => ({
  seq,
  time: 0,
  kind: "step",
  step: number,
  loss,
  loss_smooth: null,
  lr: null,
  grad_norm: null,
  samples_per_s: null,
  data_wait_s: null,
  step_s: null,
  peak_memory_mib: null,
  epoch: null,
  batch: null,
  eta_s: null,
  loss_by_noise_level: [],
  ...more,
});

const validated = (seq: number, step: number, weights: "raw" | "ema"): RunEvent => ({
  seq,
  time: 0,
  kind: "validated",
  step,
  loss: 1,
  weights,
  by_quantile: {},
});

const skip = (seq: number): RunEvent => ({
  seq,
  time: 0,
  kind: "skipped",
  file: "a.jsonl",
  line: seq,
  reason: "unreadable",
});

const base = {
  num_steps: 2,
  last_seq: 5,
  steps: [10, 20],
  series: { loss: { mean: [2, 1], low: [2, 1], high: [2, 1] } },
  marks: [],
} as unknown as Metrics;

describe("metrics and stream together", () => {
  test("show each step once when they overlap", () => {
    const columns = columnsOf(base, [step(4, 19, 9), step(5, 20, 9), step(6, 21, 0.5), step(7, 22, null)]);
    expect(columns.steps).toEqual([10, 20, 21, 22]);
    expect(columns.curves.loss).toEqual([2, 1, 0.5, null]);
  });

  test("never go back: repeated steps of a resumed run wait for the metrics", () => {
    expect(columnsOf(base, [step(6, 15, 3)]).steps).toEqual([10, 20]);
  });

  test("no step is missing while the metrics are refetched", () => {
    const events = Array.from({ length: 1600 }, (_, index) => step(6 + index, 21 + index, 1));
    const before = columnsOf(base, events);
    expect(columnsOf(base, notInMetrics(events, base.last_seq)).steps).toEqual(before.steps);
    const later = { ...base, last_seq: 1605 };
    expect(notInMetrics(events, later.last_seq)).toHaveLength(400);
    expect(notInMetrics(events, 600)[0]?.seq).toBe(601);
  });

  test("do not change the metrics", () => {
    columnsOf(base, [step(6, 21, 0.5)]);
    expect(base.steps).toEqual([10, 20]);
  });
});

test("loss by noise level is the mean of the measured values", () => {
  const levels = byNoiseLevel([
    step(1, 1, 1, { loss_by_noise_level: [1, null, 3, null, null, null, null, null] }),
    step(2, 2, 1, { loss_by_noise_level: [3, null, null, null, null, null, null, 4] }),
  ]);
  expect(levels).toEqual([2, null, 3, null, null, null, null, 4]);
});

describe("smoothing", () => {
  test("has no bias at the start", () => {
    expect(smoothed([5, 5, 5], 0.99)[0]).toBeCloseTo(5);
  });
  test("skips missing values", () => {
    expect(smoothed([null, 4, Number.NaN, 4], 0.5)).toEqual([null, 4, 4, 4]);
  });
  test("changes nothing at weight 0", () => {
    expect(smoothed([3, 1, 2], 0)).toEqual([3, 1, 2]);
  });
});

test("samples form a grid of prompts and steps in any order", () => {
  const sample = (at: number, place: string, prompt: string): Sample => ({
    file: `step_${at}/${place}.png`,
    step: at,
    url: "",
    prompt,
    seed: 1,
    settings: {},
  });
  const grid = gridOf([
    sample(200, "01", "fox"),
    sample(100, "00", "cat"),
    sample(200, "00", "cat"),
    sample(100, "01", "fox"),
  ]);
  expect(grid.steps).toEqual([100, 200]);
  expect(grid.rows.map((row) => row.prompt)).toEqual(["cat", "fox"]);
  expect(grid.rows[1]?.byStep.get(200)?.file).toBe("step_200/01.png");
});

test("an image has its own prompt, independent of other steps in its row", () => {
  const sample = (step: number, place: string, prompt: string, seed: number, from_batch = false): Sample => ({
    file: `step_${step}/${place}.png`,
    step,
    url: "",
    prompt,
    seed,
    from_batch,
    settings: { width: 64 },
  });
  const old = (step: number, place: string, prompt: string, seed: number) => ({
    ...sample(step, place, prompt, seed),
    from_batch: false,
  });
  for (const batch of [sample, old]) {
    const grid = gridOf([
      sample(20, "00", "a fox", 1),
      batch(20, "01", "a man with a camera", 2, true),
      sample(10, "00", "a fox", 1),
      batch(10, "01", "a motorcycle", 2, true),
    ]);
    expect(grid.rows).toHaveLength(2);
    const [fox, varying] = grid.rows;
    expect(fox && [fox.prompt, promptAt(fox, 10)]).toEqual(["a fox", "a fox"]);
    expect(varying && [promptAt(varying, 10), promptAt(varying, 20), promptAt(varying, 30)]).toEqual([
      "a motorcycle",
      "a man with a camera",
      batch === sample ? FROM_BATCH : "Prompt changes with the step",
    ]);
    expect(varying?.prompt).toBe(batch === sample ? FROM_BATCH : "Prompt changes with the step");
  }
});

test("sections sampled at different steps do not share a row, nor do prompts of one seed", () => {
  const sample = (step: number, place: string, prompt: string, seed: number, width: number): Sample => ({
    file: `step_${step}/${place}.png`,
    step,
    url: "",
    prompt,
    seed,
    from_batch: false,
    settings: { width },
  });
  const grid = gridOf([
    sample(20, "00", "a fox", 1, 64),
    sample(20, "01", "a hut", 1, 96),
    sample(10, "00", "a hut", 1, 96),
    sample(10, "01", "a sea", 1, 96),
  ]);
  expect(grid.rows.map((row) => [row.prompt, [...row.byStep.keys()].sort()])).toEqual([
    ["a fox", [20]],
    ["a hut", [10, 20]],
    ["a sea", [10]],
  ]);
});

describe("validations", () => {
  test("come from the metrics and the stream, each once, for both kinds of weights", () => {
    const mark = { kind: "validated", step: 10, loss: 2, weights: "raw" };
    const marked = { ...base, marks: [mark, { kind: "saved", step: 10, loss: null }] } as unknown as Metrics;
    const note = validated(6, 20, "ema");
    expect(validationsOf(marked, [validated(5, 10, "ema"), note])).toEqual([
      { step: 10, loss: 2, weights: "raw" },
      { step: 20, loss: 1, weights: "ema" },
    ]);
  });
});

test("skipped rows do not push out a validation", () => {
  const first = validated(1, 20, "raw");
  const skipped = Array.from({ length: 500 }, (_, index) => skip(2 + index));
  const notes = withNotes([first], skipped);
  expect(notes[0]).toBe(first);
  expect(notes).toHaveLength(201);
});

describe("samples of several runs", () => {
  const sample = (step: number, prompt: string) =>
    ({ file: `step_${step}/00.png`, step, url: "", prompt, seed: 1, settings: {} }) as unknown as Sample;

  test("are adjacent by prompt, over the steps of all runs", () => {
    const grid = mergeGrids([
      { run: "a", grid: gridOf([sample(10, "fox"), sample(20, "fox")]) },
      { run: "b", grid: gridOf([sample(15, "fox")]) },
    ]);
    expect(grid.steps).toEqual([10, 15, 20]);
    expect(grid.rows.map((row) => [row.run, row.prompt])).toEqual([
      ["a", "fox"],
      ["b", "fox"],
    ]);
    const [own, other] = grid.rows;
    expect(own && nearest(own, 15)?.step).toBe(10);
    expect(other && nearest(other, 10)?.step).toBe(15);
  });
});
