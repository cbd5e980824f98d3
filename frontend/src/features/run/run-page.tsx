"use client";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { LinkButton } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Meter, Page, Panel, Skeleton, Stat } from "@/components/ui/panel";
import { StateBadge } from "@/components/ui/state-badge";
import { TabPanel, Tabs } from "@/components/ui/tabs";
import { XYGrid } from "@/features/playground/xy-grid";
import { useDeferredMount } from "@/hooks/use-deferred-mount";
import { type RunStream, useRunStream } from "@/hooks/use-run-stream";
import type { RunView } from "@/lib/api/client";
import { ACTIVE, run as runQuery } from "@/lib/api/queries";
import { ago, count, duration, figure, mib, moment, rate } from "@/lib/format";
import { activityOf } from "@/lib/launch";
import { Checkpoints } from "./checkpoints";
import { ConfigPanel } from "./config-panel";
import { GpuCharts } from "./gpu-charts";
import { LogPanel } from "./log-panel";
import { LossByNoiseLevel } from "./loss-by-noise-level";
import { LossChart } from "./loss-chart";
import { MetricCharts } from "./metric-charts";
import { RunActions } from "./run-actions";
import { RunAlerts } from "./run-alerts";
import { Samples } from "./samples";
import { TaskResult } from "./task-result";

type View = "overview" | "log" | "config";

/** The latest values; the event stream is ahead of the run's view. */
function Readings({ run, live, isTraining }: { run: RunView; live: RunStream; isTraining: boolean }) {
  const { steps, curves } = live.columns;
  const last = steps.length - 1;
  const step = Math.max(run.step ?? 0, steps[last] ?? 0);
  const isActive = ACTIVE.has(run.state);
  // If a time limit ends the run, the remaining steps follow from the step time.
  const stepsLeft = run.eta_s != null && curves.step_s[last] ? run.eta_s / (curves.step_s[last] ?? 1) : null;
  const totalSteps = run.max_steps ?? (stepsLeft === null ? null : step + stepsLeft);
  return (
    <Panel className="mb-4">
      <dl className="grid grid-cols-2 gap-x-6 gap-y-4 sm:grid-cols-4 lg:grid-cols-7">
        <Stat
          label="Step"
          value={count(step)}
          note={[run.max_steps && `of ${count(run.max_steps)}`, run.epoch != null && `epoch ${run.epoch}`]
            .filter(Boolean)
            .join(", ")}
        />
        {isTraining && (
          <Stat
            label="Loss"
            value={figure(curves.loss_smooth[last] ?? run.loss)}
            note={`raw ${figure(curves.loss[last])}`}
          />
        )}
        {isTraining && <Stat label="Learning rate" value={rate(curves.lr[last] ?? run.lr)} />}
        <Stat
          label="Speed"
          value={figure(curves.samples_per_s[last] ?? run.samples_per_s, 3)}
          note={isTraining ? "samples/s" : "per second"}
        />
        {isTraining && (
          <Stat label="Peak memory" value={mib(curves.peak_memory_mib[last] ?? run.peak_memory_mib)} />
        )}
        <Stat
          label={isActive ? "Remaining" : "Started"}
          value={isActive ? duration(run.eta_s) : ago(run.created)}
          note={moment(run.created)}
        />
        <Stat label="Device" value={run.devices?.join(", ") || "–"} note={run.trainer} />
      </dl>
      <div className="mt-4">
        <Meter
          value={run.state === "finished" ? 1 : totalSteps ? step / totalSteps : 0}
          label="Progress"
          tone={run.state === "finished" ? "success" : run.state === "failed" ? "destructive" : "primary"}
        />
      </div>
    </Panel>
  );
}

function Lead({ run, live }: { run: RunView; live: RunStream }) {
  return (
    <span className="flex flex-wrap items-center gap-x-3 gap-y-1" aria-live="polite">
      <StateBadge state={run.state} />
      {activityOf(run) && <span>{activityOf(run)}</span>}
      {ACTIVE.has(run.state) && live.connection === "lost" && (
        <span className="text-warning">Connection lost. Reconnecting …</span>
      )}
    </span>
  );
}

export function RunPage({ id, others }: { id: string; others: string[] }) {
  const { data: run, error, refetch } = useQuery(runQuery(id));
  const live = useRunStream(id);
  const [view, setView] = useState<View>("overview");
  const isDeferredMounted = useDeferredMount(run !== undefined);
  if (error && !run) {
    return (
      <Page title={id} actions={<LinkButton href="/runs/">All runs</LinkButton>}>
        <ErrorAlert error={error} onRetry={() => void refetch()} />
      </Page>
    );
  }
  if (!run) {
    return (
      <Page title={id} lead={"\u00a0"} wide>
        <Skeleton className="mb-4 h-28" />
        <Skeleton className="h-96" />
      </Page>
    );
  }
  const isActive = ACTIVE.has(run.state);
  const isTraining = run.kind === "training" || live.columns.steps.length > 0;
  const isSampling = run.trainer === "sample" && others.length === 0;
  return (
    <Page title={run.id} wide lead={<Lead run={run} live={live} />} actions={<RunActions run={run} />}>
      <RunAlerts run={run} notes={live.notes} damagedLines={live.base?.damaged_lines ?? 0} />
      <Readings run={run} live={live} isTraining={isTraining} />
      <div className="mb-4 flex items-center justify-between border-b">
        <Tabs
          label="Run"
          chosen={view}
          onChoose={setView}
          tabs={[
            { name: "overview", label: "Overview" },
            { name: "log", label: "Log" },
            { name: "config", label: "Configuration" },
          ]}
        />
        {others.length > 0 && (
          <LinkButton kind="quiet" size="small" href={`/runs/?id=${encodeURIComponent(id)}`}>
            End comparison
          </LinkButton>
        )}
      </div>
      <TabPanel name={view}>
        {view === "overview" && (
          <div className="grid gap-4">
            {isTraining && (
              <LossChart id={id} columns={live.columns} validations={live.validations} others={others} />
            )}
            {!isTraining && !isSampling && <TaskResult id={id} trainer={run.trainer} isOver={!isActive} />}
            {isSampling && <XYGrid id={id} isActive={isActive} />}
            {(isTraining || (run.trainer === "sample" && !isSampling)) && (
              <Samples id={id} isActive={isActive} others={others} />
            )}
            <div className="grid items-start gap-4 xl:grid-cols-[minmax(0,2fr)_minmax(0,1fr)]">
              <div className="grid min-w-0 gap-4">
                {isDeferredMounted && <MetricCharts columns={live.columns} />}
                {isDeferredMounted && <GpuCharts id={id} startTime={run.created} isActive={isActive} />}
              </div>
              <div className="grid gap-4">
                <LossByNoiseLevel levels={live.levels} />
                {isTraining && <Checkpoints id={id} isActive={isActive} />}
              </div>
            </div>
          </div>
        )}
        {view === "log" && <LogPanel id={id} isActive={isActive} />}
        {view === "config" && <ConfigPanel id={id} trainer={run.trainer} />}
      </TabPanel>
    </Page>
  );
}
