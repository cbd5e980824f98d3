"use client";
import { useQuery } from "@tanstack/react-query";
import Link from "next/link";
import { Empty, Panel } from "@/components/ui/panel";
import { StateBadge } from "@/components/ui/state-badge";
import { runHref } from "@/features/run/run-progress";
import { api, type RunView, unwrap } from "@/lib/api/client";
import { ACTIVE } from "@/lib/api/queries";
import { ago } from "@/lib/format";

const NUM_RUNS = 12;
const NUM_IMAGES = 6;

function SampleRun({ run }: { run: RunView }) {
  const { data } = useQuery({
    queryKey: ["run", run.id, "samples", "few"],
    queryFn: () =>
      unwrap(
        api.GET("/api/runs/{run_id}/samples", {
          params: { path: { run_id: run.id }, query: { limit: NUM_IMAGES } },
        }),
      ),
    refetchInterval: ACTIVE.has(run.state) ? 2000 : false,
  });
  return (
    <li>
      <Link href={runHref(run.id)} className="grid gap-2 px-4 py-3 hover:bg-muted">
        <span className="flex items-center justify-between gap-3 text-sm">
          <span className="min-w-0 truncate font-medium">{data?.samples[0]?.prompt ?? run.id}</span>
          <span className="flex items-center gap-3 text-xs text-muted-foreground">
            <StateBadge state={run.state} />
            {ago(run.created)}
          </span>
        </span>
        {data && data.samples.length > 0 && (
          <span className="grid grid-cols-6 gap-2">
            {data.samples.map((sample) => (
              <img
                key={sample.file}
                src={`${sample.url}?size=256`}
                alt={sample.prompt ?? ""}
                loading="lazy"
                className="aspect-square w-full rounded border bg-muted object-contain"
              />
            ))}
          </span>
        )}
        {run.error && <span className="text-xs text-destructive">{run.error.message}</span>}
      </Link>
    </li>
  );
}

/** The latest runs of the task `sample`. */
export function RecentSamples() {
  const { data } = useQuery({
    queryKey: ["runs", "sample"],
    queryFn: () =>
      unwrap(api.GET("/api/runs", { params: { query: { trainer: "sample", limit: NUM_RUNS } } })),
    refetchInterval: 2000,
  });
  return (
    <Panel title="Results" flush>
      {data && data.runs.length === 0 ? (
        <Empty title="No images yet">Choose a model, write a prompt, and generate.</Empty>
      ) : (
        <ul className="divide-y">
          {data?.runs.map((run) => (
            <SampleRun key={run.id} run={run} />
          ))}
        </ul>
      )}
    </Panel>
  );
}
