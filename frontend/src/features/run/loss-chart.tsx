"use client";
import { useQueries, useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { Button } from "@/components/ui/button";
import { Empty, Panel } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import type { Columns, Validation } from "@/hooks/use-run-stream";
import { metrics } from "@/lib/api/queries";
import type { Span } from "@/lib/chart-range";
import { count, figure } from "@/lib/format";
import { chartSeries } from "./chart-series";
import { type ChartLine, LineChart } from "./line-chart";

const SMOOTH = [
  { value: 0, label: "Off" },
  { value: 0.8, label: "Low" },
  { value: 0.95, label: "Medium" },
  { value: 0.99, label: "High" },
];
const DETAIL = 2000;
const OTHERS_EVERY_MS = 15_000;

/** The columns of a span of steps, at the finest resolution. */
function useDetail(id: string, columns: Columns, span: Span | null): Columns {
  // With half a span on both sides, for panning.
  const margin = span ? (span[1] - span[0]) / 2 : 0;
  const first = span ? Math.max(0, Math.floor(span[0] - margin)) : 0;
  const last = span ? Math.ceil(span[1] + margin) : 0;
  const { data } = useQuery({ ...metrics(id, DETAIL, { first, last }), enabled: span !== null });
  return useMemo(() => {
    if (!span || !data || data.steps.length === 0) return columns;
    return { steps: data.steps, curves: { ...columns.curves, loss: data.series.loss?.mean ?? [] } };
  }, [columns, data, span]);
}

function Legend({ lines }: { lines: ChartLine[] }) {
  return (
    <ul className="mt-2 flex flex-wrap gap-x-4 gap-y-1 text-xs text-secondary-foreground">
      {lines.map((line) => (
        <li key={line.label} className="flex items-center gap-1.5">
          <span
            className="h-0.5 w-4"
            style={{ background: `var(--${line.colour})`, opacity: line.alpha ?? 1 }}
          />
          {line.label}
        </li>
      ))}
    </ul>
  );
}

interface Props {
  id: string;
  columns: Columns;
  validations: Validation[];
  others: string[];
}

export function LossChart({ id, columns, validations, others }: Props) {
  const [weight, setWeight] = useState(0.95);
  const [isLog, setLog] = useState(false);
  const [span, setSpan] = useState<Span | null>(null);
  const [point, setPoint] = useState<number | null>(null);
  const detail = useDetail(id, columns, span);
  const otherMetrics = useQueries({
    queries: others.map((other) => ({ ...metrics(other, DETAIL), refetchInterval: OTHERS_EVERY_MS })),
  });
  const otherColumns = others.map((other, index) => ({
    id: other,
    steps: otherMetrics[index]?.data?.steps ?? [],
    loss: otherMetrics[index]?.data?.series.loss?.mean ?? [],
  }));
  // Not by length: a downsampled long run always has the same number of points.
  const key = others.map((other, index) => `${other}:${otherMetrics[index]?.dataUpdatedAt}`).join();
  // biome-ignore lint/correctness/useExhaustiveDependencies: key changes with the data of the other runs
  const { steps, lines } = useMemo(
    () => chartSeries(detail, weight, validations, otherColumns),
    [detail, weight, validations, key],
  );
  const index = point ?? steps.length - 1;
  return (
    <Panel
      title={
        <span className="flex items-baseline gap-3">
          Loss
          <span className="figure text-xs font-normal text-secondary-foreground">
            {steps.length > 0 &&
              `step ${count(steps[index])}  ${lines
                .flatMap((line) => (line.values[index] == null ? [] : [figure(line.values[index])]))
                .join("  ")}`}
          </span>
        </span>
      }
      actions={
        <>
          {span && (
            <Button size="small" kind="quiet" onClick={() => setSpan(null)}>
              {" "}
              Reset zoom{" "}
            </Button>
          )}
          <ToggleGroup label="Smoothing" options={SMOOTH} value={weight} onChange={setWeight} />
          <ToggleGroup
            label="Y axis"
            options={[
              { value: 0, label: "Linear" },
              { value: 1, label: "Log" },
            ]}
            value={isLog ? 1 : 0}
            onChange={(value) => setLog(value === 1)}
          />
        </>
      }
    >
      {columns.steps.length < 2 ? (
        <div className="h-[280px]">
          <Empty title={columns.steps.length === 0 ? "No steps yet" : "One step so far"}>
            The chart appears after the second step.
          </Empty>
        </div>
      ) : (
        <>
          <LineChart
            label={`Loss of ${id}. Plus and minus zoom, arrow keys pan, Home resets`}
            whole={[columns.steps[0] ?? 0, columns.steps[columns.steps.length - 1] ?? 0]}
            steps={steps}
            lines={lines}
            height={280}
            isLog={isLog}
            span={span}
            onSpan={setSpan}
            onPoint={setPoint}
          />
          {lines.length > 2 && <Legend lines={lines} />}
        </>
      )}
    </Panel>
  );
}
