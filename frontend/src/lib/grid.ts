import type { Sample } from "./api/client";

export interface SampleGrid {
  /** Steps from the first to the last. */
  steps: number[];
  rows: SampleRow[];
}

export interface SampleRow {
  key: string;
  prompt: string;
  seed: number | null;
  byStep: Map<number, Sample>;
  /** Which run drew it, where several are compared. */
  run?: string;
}

/** Samples as a grid prompt x step. A row is a place in the list of prompts, which a run keeps. */
export function gridOf(samples: readonly Sample[]): SampleGrid {
  const rows = new Map<string, SampleGrid["rows"][number]>();
  const steps = new Set<number>();
  for (const sample of samples) {
    const step = sample.step ?? 0;
    const place =
      sample.file
        .split("/")
        .pop()
        ?.replace(/\.\w+$/, "") ?? sample.file;
    const isPlace = /^\d{1,3}$/.test(place);
    const key = isPlace ? place : (sample.prompt ?? "all");
    steps.add(step);
    const row = rows.get(key) ?? { key, prompt: "", seed: null, byStep: new Map() };
    row.prompt ||= sample.prompt ?? (isPlace ? `Picture ${Number(place) + 1}` : place);
    row.seed ??= sample.seed ?? null;
    if (!row.byStep.has(step)) row.byStep.set(step, sample);
    rows.set(key, row);
  }
  return {
    steps: [...steps].sort((a, b) => a - b),
    rows: [...rows.values()].sort((a, b) => a.key.localeCompare(b.key, "en", { numeric: true })),
  };
}

/** Grids of several runs as one: rows of the same prompt stand below each other, the first run's on top. */
export function together(grids: readonly { run: string; grid: SampleGrid }[]): SampleGrid {
  const [first, ...rest] = grids;
  if (!first) return { steps: [], rows: [] };
  if (rest.length === 0) return first.grid;
  const prompts = new Set(grids.flatMap(({ grid }) => grid.rows.map((row) => row.prompt)));
  return {
    steps: [...new Set(grids.flatMap(({ grid }) => grid.steps))].sort((a, b) => a - b),
    rows: [...prompts].flatMap((prompt) =>
      grids.flatMap(({ run, grid }) =>
        grid.rows
          .filter((row) => row.prompt === prompt)
          .map((row) => ({ ...row, key: `${run}/${row.key}`, run })),
      ),
    ),
  };
}

/** The row's picture at `step`, or else its newest one before it, or its first. */
export function nearest(row: SampleRow, step: number): Sample | undefined {
  const steps = [...row.byStep.keys()].sort((a, b) => a - b);
  const before = steps.filter((each) => each <= step);
  return row.byStep.get(before[before.length - 1] ?? steps[0] ?? -1);
}
