/** Images generated over a grid of settings, laid out by two of them. */
import type { Sample } from "@/lib/api/client";

export interface Axis {
  name: string;
  /** In order of generation. */
  values: string[];
}

const AXES = [
  "prompt",
  "seed",
  "source",
  "weights",
  "sampler",
  "steps",
  "cfg",
  "lora_strength",
  "negative",
  "width",
  "height",
];

export function settingOf(sample: Sample, axis: string): string {
  const value = axis === "prompt" || axis === "seed" ? sample[axis] : sample.settings?.[axis];
  return value == null ? "" : String(value);
}

/** The settings that differ between the images. */
export function axesOf(samples: readonly Sample[]): Axis[] {
  const inOrder = [...samples].sort((a, b) => a.file.localeCompare(b.file, "en", { numeric: true }));
  return AXES.map((name) => ({
    name,
    values: [...new Set(inOrder.map((each) => settingOf(each, name)))],
  })).filter((axis) => axis.values.length > 1);
}

/** The images of each cell; several if further settings differ. */
export function cellsOf(
  samples: readonly Sample[],
  x: string | null,
  y: string | null,
): Map<string, Sample[]> {
  const cells = new Map<string, Sample[]>();
  for (const sample of samples) {
    const key = keyOf(x ? settingOf(sample, x) : "", y ? settingOf(sample, y) : "");
    cells.set(key, [...(cells.get(key) ?? []), sample]);
  }
  return cells;
}

export const keyOf = (x: string, y: string) => JSON.stringify([x, y]);
