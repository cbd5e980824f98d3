"use client";
import { useMutation } from "@tanstack/react-query";
import { useEffect } from "react";
import { useForm } from "@/components/form/form-context";
import { Button } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Panel } from "@/components/ui/panel";
import { api, type Schemas, unwrap } from "@/lib/api/client";
import { bytes, count, duration, figure } from "@/lib/format";
import type { Json, Tree } from "@/lib/json";

/** The parts of a total against the free amount. */
function Stack({
  title,
  report,
}: {
  title: string;
  report: Pick<Schemas["MemoryReport"], "parts" | "total" | "free" | "fits"> & { not_counted?: string[] };
}) {
  const parts = Object.entries(report.parts).filter(([, size]) => size > 0);
  const whole = Math.max(report.total, report.free);
  return (
    <div className="grid gap-1.5">
      <div className="flex items-baseline justify-between text-xs">
        <span className="font-medium">{title}</span>
        <span className={cx("figure", report.fits ? "text-secondary-foreground" : "text-destructive")}>
          {bytes(report.total)} of {bytes(report.free)}
        </span>
      </div>
      <div
        className="flex h-3 overflow-hidden rounded bg-muted ring-1 ring-border ring-inset"
        aria-hidden="true"
      >
        {parts.map(([name, size], index) => (
          <span
            key={name}
            title={`${name}: ${bytes(size)}`}
            style={{ width: `${(size / whole) * 100}%`, background: `var(--chart-${(index % 8) + 1})` }}
          />
        ))}
      </div>
      <ul className="flex flex-wrap gap-x-3 gap-y-0.5 text-2xs text-secondary-foreground">
        {parts.map(([name, size], index) => (
          <li key={name} className="flex items-center gap-1">
            <span className="size-2 rounded-sm" style={{ background: `var(--chart-${(index % 8) + 1})` }} />
            {name} <span className="figure">{bytes(size)}</span>
          </li>
        ))}
      </ul>
      {report.not_counted && report.not_counted.length > 0 && (
        <details className="text-2xs text-muted-foreground">
          <summary className="cursor-pointer">Rough estimate: not included</summary>
          <ul className="mt-1 grid list-disc gap-0.5 pl-4">
            {report.not_counted.map((each) => (
              <li key={each}>{each}</li>
            ))}
          </ul>
        </details>
      )}
    </div>
  );
}

/** The measures of the memory plan, each with what it saves and costs. */
function MemoryPlan({ plan }: { plan: Schemas["PlanReport"] }) {
  const host = Object.entries(plan.host_parts);
  return (
    <div className="grid gap-1 text-2xs text-secondary-foreground">
      <ul className="grid gap-0.5" aria-label="Memory plan">
        {plan.measures.map((measure) => (
          <li key={measure.path}>
            <code>{measure.path}</code>: {String(measure.value)}, saves {bytes(measure.saved)},{" "}
            {Math.round(measure.slow_down * 100)}% slower
          </li>
        ))}
        {host.map(([name, size]) => (
          <li key={name}>
            On the host: {name} {bytes(size)}
          </li>
        ))}
      </ul>
      {plan.measures.length > 0 && <p className="text-muted-foreground">Speeds {plan.speed}.</p>}
    </div>
  );
}

/** The estimated duration. */
function Time({ time }: { time: Schemas["TimeReport"] }) {
  const steps = time.steps != null && time.epochs != null && (
    <>
      {count(time.steps)} steps, {figure(time.epochs, 3)} epochs
    </>
  );
  if (time.epoch_s == null || time.samples_per_s == null) {
    return steps && <p className="text-xs font-medium">{steps}</p>;
  }
  return (
    <p className="text-xs">
      <span className="font-medium">
        {time.total_s == null ? `${duration(time.epoch_s)} per epoch` : duration(time.total_s)}
      </span>{" "}
      {steps && <>for {steps} </>}at {figure(time.samples_per_s, 3)} samples/s{" "}
      <span className="text-muted-foreground">({time.source})</span>
    </p>
  );
}

function Buckets({ data }: { data: Schemas["DataReport"] }) {
  const most = Math.max(...data.buckets.map((bucket) => bucket.rows), 1);
  const left = Object.entries(data.left_out).filter(([, number]) => number > 0);
  return (
    <div className="grid gap-1.5">
      <p className="text-xs">
        <span className="font-medium">{count(data.rows)} rows</span>
        {data.images != null && <> of {count(data.images)} images</>}
        {data.regularisation ? <>, {count(data.regularisation)} of them regularization</> : null},{" "}
        {count(data.steps_per_epoch)} steps per epoch
      </p>
      <ul className="grid max-h-40 gap-0.5 overflow-y-auto">
        {data.buckets.map((bucket) => (
          <li
            key={`${bucket.width}x${bucket.height}`}
            className="grid grid-cols-[6rem_minmax(0,1fr)_3.5rem] items-center gap-2 text-2xs"
          >
            <span className="figure">
              {bucket.width} × {bucket.height}
            </span>
            <span className="h-1.5 rounded bg-primary" style={{ width: `${(bucket.rows / most) * 100}%` }} />
            <span className="figure text-right text-muted-foreground">{count(bucket.rows)}</span>
          </li>
        ))}
      </ul>
      {left.map(([why, number]) => (
        <p key={why} className="text-2xs text-warning">
          {count(number)} skipped: {why}
        </p>
      ))}
    </div>
  );
}

/** The estimated needs of a run, and changes that make it fit. */
export function Preflight({ trainer, config, isReady }: { trainer: string; config: Tree; isReady: boolean }) {
  const { set } = useForm();
  const check = useMutation({
    mutationFn: () =>
      unwrap(api.POST("/api/{trainer}/preflight", { params: { path: { trainer } }, body: { config } })),
  });
  const { reset } = check;
  // biome-ignore lint/correctness/useExhaustiveDependencies: a result belongs to its configuration
  useEffect(() => reset(), [config]);
  const report = check.data;
  return (
    <Panel
      title="Preflight"
      actions={
        <Button size="small" disabled={!isReady} isBusy={check.isPending} onClick={() => check.mutate()}>
          {check.isPending ? "Checking …" : "Check memory, time and data"}
        </Button>
      }
    >
      {check.error ? (
        <ErrorAlert error={check.error} />
      ) : !report ? (
        <p className="text-sm text-secondary-foreground">
          {isReady
            ? "Estimates memory, disk and time, and lists buckets and skipped rows, before the run starts."
            : "Fix the problems above to run this check."}
        </p>
      ) : (
        <div className="grid gap-4" role="status">
          {report.problems.map((problem) => (
            <p key={problem.where + problem.message} className="text-sm text-destructive">
              {problem.where}: {problem.message} {problem.hint}
            </p>
          ))}
          {report.memory && <Stack title="Memory" report={report.memory} />}
          {report.memory?.plan && <MemoryPlan plan={report.memory.plan} />}
          {report.disk && <Stack title="Disk" report={report.disk} />}
          {report.disk?.kept_text && (
            <p className="text-sm text-secondary-foreground">Checkpoints kept: {report.disk.kept_text}.</p>
          )}
          {report.time && <Time time={report.time} />}
          {report.data && <Buckets data={report.data} />}
          {report.hints.length > 0 && (
            <ul className="grid list-disc gap-1 pl-4 text-xs text-warning" aria-label="Hints">
              {report.hints.map((each) => (
                <li key={each}>{each}</li>
              ))}
            </ul>
          )}
          {report.changes.length > 0 && (
            <div className="grid gap-1.5">
              <p className="text-xs font-medium">Change these settings together, in this order</p>
              <ol className="grid list-decimal gap-1 pl-4 text-xs text-secondary-foreground">
                {report.changes.map((change) => (
                  <li key={change.path + String(change.value)}>
                    Set <code>{change.path}</code> to <code>{JSON.stringify(change.value)}</code>
                    {change.bytes != null && <>: then {bytes(change.bytes)} in all</>}
                  </li>
                ))}
              </ol>
              <Button
                size="small"
                kind="primary"
                onClick={() => {
                  for (const { path, value } of report.changes) set(path.split("."), value as Json);
                }}
              >
                Apply changes
              </Button>
            </div>
          )}
        </div>
      )}
    </Panel>
  );
}
