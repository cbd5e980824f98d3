import type { Sample } from "@/lib/api/client";

export interface SampleGrid {
  /** In ascending order. */
  steps: number[];
  rows: SampleRow[];
}

export interface SampleRow {
  key: string;
  /** The row's name: the prompt, if all of its images have the same. */
  prompt: string;
  seed: number | null;
  byStep: Map<number, Sample>;
  /** The run that generated it, when runs are compared. */
  run?: string;
}

export const FROM_BATCH = "Caption from the batch";
const VARYING = "Prompt changes with the step";

const positionOf = (file: string) => {
  const name = file.split("/").pop() ?? file;
  return name.replace(/\.\w+$/, "");
};
const isPosition = (position: string) => /^\d{1,3}$/.test(position);

/** The key that the images of a row share. It does not depend on the prompt: each list position has its seed. */
function seriesOf(sample: Sample): string {
  if (sample.from_batch) return `batch ${sample.seed} ${JSON.stringify(sample.settings)}`;
  if (sample.seed != null) return `${sample.seed} ${JSON.stringify(sample.settings)}`;
  const position = positionOf(sample.file);
  return isPosition(position) ? position : (sample.prompt ?? "all");
}

function grouped<T>(items: readonly T[], keyOf: (item: T) => string): T[][] {
  const groups = new Map<string, T[]>();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return [...groups.values()];
}

/** True if no step has two of the samples, so that they fit in one row. */
const isRow = (samples: readonly Sample[]) =>
  new Set(samples.map((sample) => sample.step ?? 0)).size === samples.length;

/** Rows of one image per step: by series, then by prompt, then by list position. */
function rowsOf(samples: readonly Sample[]): Sample[][] {
  return grouped(samples, seriesOf).flatMap((series) =>
    isRow(series)
      ? [series]
      : grouped(series, (sample) => sample.prompt ?? "").flatMap((same) =>
          isRow(same) ? [same] : grouped(same, (sample) => positionOf(sample.file)),
        ),
  );
}

function nameOf(samples: readonly Sample[], position: string): string {
  const prompts = new Set(samples.map((sample) => sample.prompt ?? ""));
  if (samples.some((sample) => sample.from_batch)) return FROM_BATCH;
  if (prompts.size > 1) return VARYING;
  const [only] = prompts;
  return only || (isPosition(position) ? `Image ${Number(position) + 1}` : position);
}

/** Return samples as a grid of prompts and steps. */
export function gridOf(samples: readonly Sample[]): SampleGrid {
  const rows = rowsOf(samples).map((some) => {
    const position = some.map((sample) => positionOf(sample.file)).sort()[0] ?? "";
    return {
      key: `${position} ${seriesOf(some[0] as Sample)} ${some[0]?.prompt ?? ""}`,
      prompt: nameOf(some, position),
      seed: some[0]?.seed ?? null,
      byStep: new Map([...some].reverse().map((sample) => [sample.step ?? 0, sample])),
    };
  });
  return {
    steps: [...new Set(samples.map((sample) => sample.step ?? 0))].sort((a, b) => a - b),
    rows: rows.sort((a, b) => a.key.localeCompare(b.key, "en", { numeric: true })),
  };
}

/** The prompt of a row's image at a step, or the row's name. */
export function promptAt(row: SampleRow, step: number): string {
  return row.byStep.get(step)?.prompt ?? row.prompt;
}

/** Merge the grids of several runs: rows of the same prompt are adjacent, the first run's on top. */
export function mergeGrids(grids: readonly { run: string; grid: SampleGrid }[]): SampleGrid {
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

/** The row's image at `step`, or the latest before it, or the first. */
export function nearest(row: SampleRow, step: number): Sample | undefined {
  const steps = [...row.byStep.keys()].sort((a, b) => a - b);
  const before = steps.filter((each) => each <= step);
  return row.byStep.get(before[before.length - 1] ?? steps[0] ?? -1);
}
