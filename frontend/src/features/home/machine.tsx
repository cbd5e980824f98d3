"use client";
import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { Meter, Panel, Skeleton } from "@/components/ui/panel";
import { system } from "@/lib/api/queries";
import { mib, percent } from "@/lib/format";

function Row({
  isCalm = false,
  name,
  note,
  figure,
  share,
}: {
  name: ReactNode;
  note?: ReactNode;
  figure: string;
  share: number;
  /** Full use is normal: no warning colour. */
  isCalm?: boolean;
}) {
  return (
    <li className="grid gap-1.5">
      <div className="flex items-baseline justify-between gap-3 text-sm">
        <span className="min-w-0 truncate font-medium">
          {name} {note && <span className="font-normal text-muted-foreground">{note}</span>}
        </span>
        <span className="figure text-xs whitespace-nowrap text-secondary-foreground">{figure}</span>
      </div>
      <Meter
        value={share}
        label={String(name)}
        tone={isCalm ? "primary" : share > 0.92 ? "destructive" : share > 0.8 ? "warning" : "primary"}
      />
    </li>
  );
}

/** The machine's devices, memory and disks, with their usage. */
export function MachinePanel() {
  const { data } = useQuery(system);
  const disks = new Map(
    data?.disks.map((disk) => [`${disk.free_gib.toFixed(1)}/${disk.total_gib.toFixed(1)}`, disk]),
  );
  return (
    <Panel title="This machine">
      {!data ? (
        <div className="grid gap-4">
          <Skeleton className="h-8" />
          <Skeleton className="h-8" />
          <Skeleton className="h-8" />
        </div>
      ) : (
        <ul className="grid gap-4">
          {data.gpus.map((card) => (
            <Row
              key={card.device}
              name={card.name}
              note={[
                card.device,
                card.temperature_c && `${card.temperature_c} °C`,
                card.power_w && `${Math.round(card.power_w)} W`,
              ]
                .filter(Boolean)
                .join(" · ")}
              figure={`${mib(card.memory_used_mib)} of ${mib(card.memory_total_mib)}`}
              share={(card.memory_used_mib ?? 0) / (card.memory_total_mib || 1)}
            />
          ))}
          {data.gpus.length === 0 && (
            <li className="text-sm text-secondary-foreground">
              No GPU found. Runs use the CPU, which is enough for the demo and small tests.
            </li>
          )}
          <Row
            name="CPU"
            isCalm
            note={`${data.num_cpus} core${data.num_cpus === 1 ? "" : "s"}`}
            figure={percent(data.cpu_percent / 100)}
            share={data.cpu_percent / 100}
          />
          <Row
            name="Memory"
            figure={`${mib(data.memory_used_mib)} of ${mib(data.memory_total_mib)}`}
            share={data.memory_used_mib / data.memory_total_mib}
          />
          {[...disks.values()].map((disk) => (
            <Row
              key={disk.root}
              name="Disk"
              note={disk.root}
              figure={`${mib(disk.free_gib * 1024)} free`}
              share={1 - disk.free_gib / disk.total_gib}
            />
          ))}
        </ul>
      )}
    </Panel>
  );
}
