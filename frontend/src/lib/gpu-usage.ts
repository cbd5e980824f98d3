/** GPU usage of a run as lines over time. */
import type { Schemas } from "@/lib/api/client";

type GpuUsage = Schemas["GpuUsage"];
export type Figure = keyof Schemas["GpuCurves"];

/** A gap this many times the usual one is a pause, and the line breaks. */
const PAUSE = 4;

export interface LoadLines {
  /** Since the run was created. */
  seconds: number[];
  lines: { device: string; values: (number | null)[] }[];
}

/** One value of each GPU that reports it; `per` converts its unit into the shown one. */
export function loadLines(loads: GpuUsage, figure: Figure, began: number, per = 1): LoadLines {
  const gaps = loads.times.slice(1).map((time, index) => time - (loads.times[index] ?? time));
  const usual = [...gaps].sort((a, b) => a - b)[Math.floor(gaps.length / 2)] ?? 0;
  const isPause = (index: number) => (gaps[index - 1] ?? 0) > PAUSE * usual;
  const at = loads.times.flatMap((_, index) => (isPause(index) ? [null, index] : [index]));
  const lines = Object.entries(loads.gpus)
    .map(([device, curves]) => ({
      device,
      values: at.map((index) => {
        const value = index === null ? null : curves[figure][index];
        return value == null ? null : value / per;
      }),
    }))
    .filter(({ values }) => values.some((value) => value !== null));
  const seconds = at.map((index, position) =>
    index === null
      ? (loads.times[(at[position + 1] ?? 0) - 1] ?? 0) + usual - began
      : (loads.times[index] ?? 0) - began,
  );
  return { seconds, lines };
}
