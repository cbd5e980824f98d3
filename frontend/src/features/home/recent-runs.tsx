"use client";
import { useQuery } from "@tanstack/react-query";
import Link from "next/link";
import { LinkButton } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Empty, Panel, Skeleton } from "@/components/ui/panel";
import { StateBadge } from "@/components/ui/state-badge";
import { LossSparkline } from "@/features/run/loss-sparkline";
import { RunProgress, runHref } from "@/features/run/run-progress";
import type { RunView } from "@/lib/api/client";
import { ACTIVE, isTraining, runs } from "@/lib/api/queries";
import { ago, duration, figure } from "@/lib/format";

function Row({ run }: { run: RunView }) {
  const isActive = ACTIVE.has(run.state);
  return (
    <li>
      <Link
        href={runHref(run.id)}
        className="grid grid-cols-[minmax(0,1fr)_auto] items-center gap-x-5 gap-y-2 px-4 py-3 hover:bg-muted sm:grid-cols-[minmax(0,1fr)_6rem_6rem_5.500rem]"
      >
        <span className="grid min-w-0 gap-1">
          <span className="truncate text-sm font-medium">{run.id}</span>
          <span className="flex items-center gap-2 text-xs text-muted-foreground">
            <StateBadge state={run.state} />
            {run.phase && run.phase !== "training" && <span className="truncate">{run.phase}</span>}
          </span>
        </span>
        <span className="max-sm:hidden">
          <LossSparkline run={run} />
        </span>
        <RunProgress run={run} />
        <span className="grid text-right text-xs text-secondary-foreground max-sm:hidden">
          <span className="figure">{figure(run.loss)}</span>
          <span className="text-muted-foreground">{isActive ? duration(run.eta_s) : ago(run.created)}</span>
        </span>
      </Link>
    </li>
  );
}

/** Active, queued and recent runs. */
export function RecentRuns() {
  const { data, error, refetch } = useQuery(runs());
  const all = data?.runs ?? [];
  const active = all.filter((run) => ACTIVE.has(run.state));
  const past = all
    .filter((run) => !ACTIVE.has(run.state) && isTraining(run))
    .slice(0, Math.max(3, 7 - active.length));
  return (
    <Panel
      title="Runs"
      flush
      actions={
        <LinkButton href="/runs/" kind="quiet" size="small">
          All {data?.total ?? ""}
        </LinkButton>
      }
    >
      {error && !data ? (
        <div className="p-4">
          <ErrorAlert error={error} onRetry={() => void refetch()} />
        </div>
      ) : !data ? (
        <div className="grid gap-3 p-4">
          <Skeleton className="h-10" />
          <Skeleton className="h-10" />
          <Skeleton className="h-10" />
        </div>
      ) : active.length + past.length === 0 ? (
        <Empty title="No training runs yet">
          The demo trains a small Chroma model on synthetic images for ten minutes, on any machine. No
          download, no account.
        </Empty>
      ) : (
        <ul className="divide-y">
          {[...active, ...past].map((run) => (
            <Row key={run.id} run={run} />
          ))}
        </ul>
      )}
    </Panel>
  );
}
