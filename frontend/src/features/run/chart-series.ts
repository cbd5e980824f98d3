import uPlot from "uplot";
import type { Columns, Validation } from "@/hooks/use-run-stream";
import { smoothed } from "@/lib/smoothing";
import type { ChartLine } from "./line-chart";

export interface Other {
  id: string;
  steps: number[];
  loss: (number | null)[];
}

const VALIDATIONS = [
  { weights: "raw", label: "validation", colour: "chart-3" },
  { weights: "ema", label: "validation, EMA", colour: "chart-4" },
] as const;

/** The lines of this run, its validations and other runs, aligned on the same steps. */
export function chartSeries(
  own: Columns,
  weight: number,
  validations: readonly Validation[],
  others: readonly Other[],
): { steps: number[]; lines: ChartLine[] } {
  const lines: ChartLine[] = [
    { label: "loss", colour: "chart-1", values: own.curves.loss, width: 1, alpha: weight ? 0.3 : 1 },
  ];
  if (weight) {
    const values = smoothed(own.curves.loss, weight);
    lines.push({ label: "smoothed", colour: "chart-1", values, width: 2 });
  }
  const tables = [[own.steps, ...lines.map((line) => line.values)] as uPlot.AlignedData];
  const first = own.steps[0] ?? 0;
  const last = own.steps[own.steps.length - 1] ?? 0;
  for (const { weights, label, colour } of VALIDATIONS) {
    const points = validations.filter(
      (each) => each.weights === weights && each.step >= first && each.step <= last,
    );
    if (points.length === 0) continue;
    lines.push({ label, colour, values: [], hasDots: true });
    tables.push([points.map((each) => each.step), points.map((each) => each.loss)]);
  }
  others.forEach((other, index) => {
    lines.push({ label: other.id, colour: `chart-${2 + (index % 7)}`, values: [] });
    tables.push([other.steps, smoothed(other.loss, weight)] as uPlot.AlignedData);
  });
  if (tables.length === 1) return { steps: own.steps, lines };
  const [steps = [], ...values] = uPlot.join(tables) as unknown as [number[], ...(number | null)[][]];
  return { steps, lines: lines.map((line, index) => ({ ...line, values: values[index] ?? [] })) };
}
