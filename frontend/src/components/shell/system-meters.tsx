"use client";
import { useQuery } from "@tanstack/react-query";
import { Meter } from "@/components/ui/panel";
import { health, system } from "@/lib/api/queries";
import { mib, percent } from "@/lib/format";

function Gauge({
  label,
  value,
  share,
  isCalm = false,
}: {
  label: string;
  value: string;
  share: number;
  isCalm?: boolean;
}) {
  return (
    <div className="grid gap-1">
      <div className="flex items-baseline justify-between gap-2 text-2xs text-secondary-foreground">
        <span className="truncate">{label}</span>
        <span className="figure whitespace-nowrap">{value}</span>
      </div>
      <Meter
        value={share}
        label={label}
        tone={isCalm ? "primary" : share > 0.92 ? "destructive" : share > 0.8 ? "warning" : "primary"}
      />
    </div>
  );
}

/** CPU, memory and GPU usage below the navigation. */
export function SystemMeters() {
  const { data } = useQuery(system);
  const { data: studio, isError } = useQuery(health);
  return (
    <div className="grid min-h-28 content-end gap-2.5">
      {data?.gpus.map((card) => (
        <Gauge
          key={card.device}
          label={card.device}
          value={`${mib(card.memory_used_mib)}`}
          share={(card.memory_used_mib ?? 0) / (card.memory_total_mib || 1)}
        />
      ))}
      {data && (
        <>
          <Gauge
            label={`${data.num_cpus} CPUs`}
            isCalm
            value={percent(data.cpu_percent / 100)}
            share={data.cpu_percent / 100}
          />
          <Gauge
            label="Memory"
            value={mib(data.memory_used_mib)}
            share={data.memory_used_mib / data.memory_total_mib}
          />
        </>
      )}
      <p className="text-2xs text-muted-foreground" role="status">
        {isError ? "Studio not responding" : studio ? `Flowloom ${studio.version}` : "\u00a0"}
      </p>
    </div>
  );
}
