"use client";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Empty, Panel, Skeleton } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { useToasts } from "@/components/ui/toasts";
import { runConfig, trainerConfig } from "@/lib/api/queries";
import { copyText } from "@/lib/clipboard";
import { differences, type Json, shown, type Tree } from "@/lib/json";
import { formTrainer } from "@/lib/trainer-pages";

export function DiffTable({ from, to, names }: { from: Json; to: Json; names: [string, string] }) {
  const rows = differences(from, to);
  if (rows.length === 0) return <Empty title="No differences" />;
  return (
    <div className="overflow-x-auto">
      <table className="w-full text-sm">
        <thead>
          <tr className="border-b text-left text-xs text-muted-foreground">
            <th className="px-4 py-2 font-medium">Key</th>
            <th className="px-4 py-2 font-medium">{names[0]}</th>
            <th className="px-4 py-2 font-medium">{names[1]}</th>
          </tr>
        </thead>
        <tbody className="divide-y">
          {rows.map(({ path, from: before, to: after }) => (
            <tr key={path} className="align-top">
              <td className="figure px-4 py-1.5 text-xs">{path}</td>
              <td className="figure px-4 py-1.5 text-xs text-muted-foreground [overflow-wrap:anywhere]">
                {shown(before)}
              </td>
              <td className="figure px-4 py-1.5 text-xs [overflow-wrap:anywhere]">{shown(after)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The run's configuration: changes from the defaults, or all of it. */
export function ConfigPanel({ id, trainer }: { id: string; trainer: string }) {
  const { data } = useQuery(runConfig(id));
  const { data: trainerInfo } = useQuery({
    ...trainerConfig(formTrainer(trainer)),
    retry: false,
  });
  const [view, setView] = useState<"changes" | "all" | "origin">("changes");
  const { notify, notifyError } = useToasts();
  const config = (data?.config ?? null) as Json;
  const { config: _, ...origin } = (data ?? {}) as Tree;
  const text = JSON.stringify(view === "origin" ? origin : config, null, 2);
  return (
    <Panel
      title="Configuration"
      flush
      actions={
        <>
          <ToggleGroup
            label="View"
            value={view}
            onChange={setView}
            options={[
              { value: "changes", label: "Changes" },
              { value: "all", label: "All" },
              { value: "origin", label: "Run info" },
            ]}
          />
          <Button
            size="small"
            kind="quiet"
            onClick={() =>
              copyText(JSON.stringify(config, null, 2)).then(() => notify("Copied."), notifyError)
            }
          >
            Copy JSON
          </Button>
        </>
      }
    >
      {!data ? (
        <div className="p-4">
          <Skeleton className="h-40" />
        </div>
      ) : view === "changes" && trainerInfo ? (
        <DiffTable from={trainerInfo.defaults as Json} to={config} names={["Default", "This run"]} />
      ) : (
        <pre tabIndex={0} className="figure max-h-[36rem] overflow-auto p-4 text-xs leading-5">
          {text}
        </pre>
      )}
    </Panel>
  );
}
