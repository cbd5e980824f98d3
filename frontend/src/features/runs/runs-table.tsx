"use client";
import Link from "next/link";
import { Checkbox } from "@/components/ui/inputs";
import { StateBadge } from "@/components/ui/state-badge";
import { LossSparkline } from "@/features/run/loss-sparkline";
import { RunProgress, runHref } from "@/features/run/run-progress";
import type { RunView } from "@/lib/api/client";
import { ACTIVE } from "@/lib/api/queries";
import { ago, duration, figure, moment } from "@/lib/format";
import { activityOf } from "@/lib/launch";

interface Props {
  runs: RunView[];
  chosen: ReadonlySet<string>;
  onChoose: (id: string, isChosen: boolean) => void;
  onChooseAll: (isChosen: boolean) => void;
}

function Row({
  run,
  isChosen,
  onChoose,
}: {
  run: RunView;
  isChosen: boolean;
  onChoose: (isChosen: boolean) => void;
}) {
  return (
    <tr className="h-14 hover:bg-muted has-checked:bg-accent">
      <td className="w-11 min-w-11 pl-4">
        <Checkbox
          aria-label={`Select ${run.id}`}
          checked={isChosen}
          onChange={(event) => onChoose(event.target.checked)}
        />
      </td>
      <td className="max-w-72 py-1.5 pr-4 max-sm:max-w-28 sm:min-w-40">
        <Link
          href={runHref(run.id)}
          className="block truncate text-sm font-medium hover:text-primary hover:underline"
          title={run.id}
        >
          {run.id}
        </Link>
        <span className="text-xs text-muted-foreground">
          {run.trainer}
          {run.devices?.length ? ` · ${run.devices.join(", ")}` : ""}
        </span>
      </td>
      <td className="pr-4 max-sm:pr-2">
        <StateBadge state={run.state} />
        {activityOf(run) && (
          <span className="block pl-3.5 text-xs text-muted-foreground">{activityOf(run)}</span>
        )}
      </td>
      <td className="w-36 pr-3 max-sm:w-24 sm:pr-6">
        <RunProgress run={run} />
      </td>
      <td className="w-28 pr-4 max-sm:hidden">
        <LossSparkline run={run} />
      </td>
      <td className="figure pr-6 text-right text-sm max-sm:hidden">{figure(run.loss)}</td>
      <td className="figure pr-6 text-right text-sm max-md:hidden">{figure(run.samples_per_s, 3)}</td>
      <td
        className="pr-4 text-right text-xs whitespace-nowrap text-secondary-foreground max-sm:hidden"
        title={moment(run.created)}
      >
        {ACTIVE.has(run.state) && run.eta_s != null ? `${duration(run.eta_s)} left` : ago(run.created)}
      </td>
    </tr>
  );
}

const HEADS = [
  { name: "Run", className: "pr-4" },
  { name: "State", className: "pr-4" },
  { name: "Steps", className: "pr-6" },
  { name: "Loss", className: "pr-4 max-sm:hidden" },
  { name: "", className: "pr-6 text-right max-sm:hidden" },
  { name: "Samples/s", className: "pr-6 text-right max-md:hidden" },
  { name: "When", className: "pr-4 text-right max-sm:hidden" },
];

export function RunsTable({ runs, chosen, onChoose, onChooseAll }: Props) {
  return (
    <div className="relative overflow-x-auto" role="region" aria-label="Runs" tabIndex={0}>
      <table className="w-full border-collapse">
        <thead>
          <tr className="h-9 border-b text-left">
            <th className="w-11 min-w-11 pl-4">
              <Checkbox
                aria-label="Select all"
                checked={runs.length > 0 && runs.every((run) => chosen.has(run.id))}
                onChange={(event) => onChooseAll(event.target.checked)}
              />
            </th>
            {HEADS.map((head, index) => (
              <th key={index} scope="col" className={`label ${head.className}`}>
                {head.name || <span className="sr-only">Loss curve</span>}
              </th>
            ))}
          </tr>
        </thead>
        <tbody className="divide-y">
          {runs.map((run) => (
            <Row
              key={run.id}
              run={run}
              isChosen={chosen.has(run.id)}
              onChoose={(is) => onChoose(run.id, is)}
            />
          ))}
        </tbody>
      </table>
    </div>
  );
}
