"use client";
import { useQuery } from "@tanstack/react-query";
import { useMemo } from "react";
import { Panel } from "@/components/ui/panel";
import type { Schemas } from "@/lib/api/client";
import { cardLoads } from "@/lib/api/queries";
import { figure } from "@/lib/format";
import { type Figure, loadLines } from "@/lib/gpu-usage";
import { LineChart } from "./line-chart";

const USAGES: { name: Figure; title: string; unit: string; per?: number }[] = [
  { name: "load_percent", title: "Load", unit: "%" },
  { name: "memory_used_mib", title: "Memory", unit: "GiB", per: 1024 },
  { name: "temperature_c", title: "Temperature", unit: "°C" },
  { name: "power_w", title: "Power", unit: "W" },
];

function UsageChart({
  loads,
  usage,
  startTime,
}: {
  loads: Schemas["GpuUsage"];
  usage: (typeof USAGES)[number];
  startTime: number;
}) {
  const { seconds, lines } = useMemo(
    () => loadLines(loads, usage.name, startTime, usage.per),
    [loads, usage, startTime],
  );
  const chartLines = useMemo(
    () =>
      lines.map(({ device, values }, index) => ({
        label: device,
        colour: `chart-${1 + (index % 8)}`,
        values,
        width: 1.25,
      })),
    [lines],
  );
  if (chartLines.length === 0) return null;
  return (
    <section className="min-w-0 p-3">
      <h3 className="flex flex-wrap items-baseline justify-between gap-x-3 text-xs">
        <span className="font-medium text-secondary-foreground">{usage.title}</span>
        <span className="figure flex flex-wrap gap-x-3">
          {chartLines.map(({ label, colour, values }) => (
            <span key={label}>
              {chartLines.length > 1 && <span style={{ color: `var(--${colour})` }}>{label} </span>}
              {figure(values[values.length - 1], 3)}
            </span>
          ))}
          <span className="text-muted-foreground">{usage.unit}</span>
        </span>
      </h3>
      <LineChart label={`${usage.title} of the GPU`} steps={seconds} isTime lines={chartLines} height={120} />
    </section>
  );
}

/** GPU usage over the run's time; nothing for a CPU run. */
export function GpuCharts({ id, startTime, isActive }: { id: string; startTime: number; isActive: boolean }) {
  const { data } = useQuery({ ...cardLoads(id), refetchInterval: isActive ? 10_000 : false });
  if (!data || data.times.length < 2) return null;
  return (
    <Panel title="GPU" flush>
      <div className="grid sm:grid-cols-2">
        {USAGES.map((usage) => (
          <UsageChart key={usage.name} loads={data} usage={usage} startTime={startTime} />
        ))}
      </div>
    </Panel>
  );
}
