"use client";
import { useMutation } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { useForm } from "@/components/form/form-context";
import { Button } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Select } from "@/components/ui/inputs";
import { Panel } from "@/components/ui/panel";
import { api, type Schemas, unwrap } from "@/lib/api/client";
import { bytes, count, duration, figure } from "@/lib/format";
import type { Json, Tree } from "@/lib/json";
import { CARDS, CardTable } from "./card-table";
import { MemoryPlan, Stack } from "./memory-plan";

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

/** Changes that make the run fit, and a button that applies them. */
function Changes({ changes }: { changes: Schemas["Change"][] }) {
  const { set } = useForm();
  return (
    <div className="grid gap-1.5">
      <p className="text-xs font-medium">Change these settings together, in this order</p>
      <ol className="grid list-decimal gap-1 pl-4 text-xs text-secondary-foreground">
        {changes.map((change) => (
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
          for (const { path, value } of changes) set(path.split("."), value as Json);
        }}
      >
        Apply changes
      </Button>
    </div>
  );
}

function Report({ report }: { report: Schemas["PreflightReport"] }) {
  return (
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
      {report.changes.length > 0 && <Changes changes={report.changes} />}
    </div>
  );
}

/** The device that is checked: this machine's, or a card by its memory. */
function CardSelect({ gib, onChange }: { gib: number | null; onChange: (gib: number | null) => void }) {
  return (
    <Select
      aria-label="Device to check"
      className="h-7 text-xs"
      value={gib ?? ""}
      onChange={(event) => onChange(Number(event.target.value) || null)}
    >
      <option value="">This machine</option>
      {CARDS.map((size) => (
        <option key={size} value={size}>
          {size} GB card
        </option>
      ))}
    </Select>
  );
}

/** The estimated needs of a run, and changes that make it fit. */
export function Preflight({ trainer, config, isReady }: { trainer: string; config: Tree; isReady: boolean }) {
  const [gib, setGib] = useState<number | null>(null);
  const hasPlan = trainer === "flow";
  const check = useMutation({
    mutationFn: (body: { gpu_gib: number | null; table: boolean }) =>
      unwrap(
        api.POST("/api/{trainer}/preflight", {
          params: { path: { trainer } },
          body: { config, ...body },
        }),
      ),
  });
  const { reset } = check;
  // biome-ignore lint/correctness/useExhaustiveDependencies: a result belongs to its configuration and device
  useEffect(() => reset(), [config, gib]);
  const report = check.data;
  const fits = report?.fits ?? [];
  return (
    <Panel
      title="Preflight"
      actions={
        <>
          {hasPlan && (
            <div className="w-32">
              <CardSelect gib={gib} onChange={setGib} />
            </div>
          )}
          <Button
            size="small"
            disabled={!isReady}
            isBusy={check.isPending}
            onClick={() => check.mutate({ gpu_gib: gib, table: false })}
          >
            {check.isPending ? "Checking …" : "Check memory, time and data"}
          </Button>
        </>
      }
    >
      {check.error ? (
        <ErrorAlert error={check.error} />
      ) : report ? (
        <div className="grid gap-4">
          <Report report={report} />
          {fits.length > 0 && <CardTable fits={fits} />}
          {report.memory?.plan && fits.length === 0 && (
            <Button size="small" onClick={() => check.mutate({ gpu_gib: gib, table: true })}>
              Compare cards of 8 to 80 GB
            </Button>
          )}
        </div>
      ) : (
        <p className="text-sm text-secondary-foreground">
          {isReady
            ? "Estimates memory, disk and time, and lists buckets and skipped rows, before the run starts."
            : "Fix the problems above to run this check."}
        </p>
      )}
    </Panel>
  );
}
