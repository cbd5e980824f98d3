import type { Sample } from "./api/client";

export interface SampleGrid {
  /** Steps from the first to the last. */
  steps: number[];
  rows: { key: string; prompt: string; seed: number | null; byStep: Map<number, Sample> }[];
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
