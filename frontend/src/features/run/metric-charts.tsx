"use client";
import { useMemo, useState } from "react";
import { Panel } from "@/components/ui/panel";
import type { Columns, Curve } from "@/hooks/use-run-stream";
import { count, figure, mib, rate } from "@/lib/format";
import { LineChart } from "./line-chart";

interface Metric {
  curve: Curve;
  title: string;
  unit?: string;
  show: (value: number | null | undefined) => string;
}

const METRICS: Metric[] = [
  { curve: "lr", title: "Learning rate", show: rate },
  { curve: "grad_norm", title: "Gradient norm", show: figure },
  { curve: "samples_per_s", title: "Speed", unit: "samples/s", show: figure },
  { curve: "step_s", title: "Time per step", unit: "s", show: figure },
  { curve: "data_wait_s", title: "Data wait", unit: "s", show: figure },
  { curve: "peak_memory_mib", title: "Peak memory", show: mib },
];

function MetricChart({ metric, columns }: { metric: Metric; columns: Columns }) {
  const [point, setPoint] = useState<number | null>(null);
  const values = columns.curves[metric.curve];
  const lines = useMemo(
    () => [{ label: metric.title, colour: "chart-5", values, width: 1.25 }],
    [metric.title, values],
  );
  const index = point ?? values.length - 1;
  return (
    <section className="min-w-0 border-border p-3">
      <h3 className="flex items-baseline justify-between gap-2 text-xs">
        <span className="font-medium text-secondary-foreground">{metric.title}</span>
        <span className="figure" title={point === null ? undefined : `step ${count(columns.steps[index])}`}>
          {metric.show(values[index])} <span className="text-muted-foreground">{metric.unit}</span>
        </span>
      </h3>
      <LineChart label={metric.title} steps={columns.steps} lines={lines} height={120} onPoint={setPoint} />
    </section>
  );
}

/** Charts of the metrics other than the loss. */
export function MetricCharts({ columns }: { columns: Columns }) {
  const available = METRICS.filter((metric) => columns.curves[metric.curve].some((value) => value !== null));
  if (columns.steps.length < 2 || available.length === 0) return null;
  return (
    <Panel title="Metrics" flush>
      <div className="grid sm:grid-cols-2 xl:grid-cols-3">
        {available.map((metric) => (
          <MetricChart key={metric.curve} metric={metric} columns={columns} />
        ))}
      </div>
    </Panel>
  );
}
