"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { Button } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Panel } from "@/components/ui/panel";
import { RunNameField } from "@/features/run/run-name-field";
import { runHref } from "@/features/run/run-progress";
import type { Problems } from "@/hooks/use-validation";
import { api, Problem, unwrap } from "@/lib/api/client";
import { queue } from "@/lib/api/queries";
import type { Hint } from "@/lib/config-hints";
import type { Draft } from "@/lib/draft";
import { clusterOf, launchOf, optionsProblem } from "@/lib/launch";
import { nameProblem } from "@/lib/run-name";
import { DeviceFields } from "./device-fields";

interface Props {
  trainer: string;
  draft: Draft;
  problems: Problems;
  isChecking: boolean;
  onPatch: (part: Partial<Draft>) => void;
  onShow: (path: string) => void;
  /** Allowed but unusual settings. */
  hints: Hint[];
}

/** Problems as links to their fields; without any, the hints. */
function Findings({ problems, hints, onShow }: Pick<Props, "problems" | "hints" | "onShow">) {
  if (problems.size === 0 && hints.length === 0) return null;
  return problems.size > 0 ? (
    <ul className="grid max-h-56 gap-1 overflow-y-auto">
      {[...problems].map(([path, fieldProblems]) => (
        <li key={path}>
          <button
            type="button"
            className="w-full rounded px-2 py-1 text-left text-xs hover:bg-muted"
            onClick={() => onShow(path)}
          >
            <code className="figure text-secondary-foreground">{path || "configuration"}</code>{" "}
            {fieldProblems.map(({ text }) => text).join(" ")}
          </button>
        </li>
      ))}
    </ul>
  ) : (
    <ul className="grid gap-0.5">
      {hints.map((hint) => (
        <li key={hint.path}>
          <button
            type="button"
            className="w-full rounded py-1 text-left text-xs text-warning hover:bg-muted hover:underline"
            onClick={() => onShow(hint.path)}
          >
            {hint.text}
          </button>
        </li>
      ))}
    </ul>
  );
}

/** Run name, devices, problems and the start button. */
export function StartPanel({ trainer, draft, problems, isChecking, onPatch, onShow, hints }: Props) {
  const router = useRouter();
  const client = useQueryClient();
  const { data } = useQuery(queue);
  // Other trainers run on this machine only.
  const clusters = trainer === "flow" ? (data?.clusters ?? []) : [];
  const cluster = clusterOf(draft.devices, clusters);
  const start = useMutation({
    mutationFn: () =>
      unwrap(
        api.POST("/api/{trainer}/train/start", {
          params: { path: { trainer } },
          body: {
            name: draft.name.trim() || null,
            config: draft.config,
            devices: draft.devices,
            launch: launchOf(draft.launch, cluster),
          },
        }),
      ),
    onSuccess: (run) => {
      void client.invalidateQueries({ queryKey: ["runs"] });
      onPatch({ name: "" });
      router.push(runHref(run.id));
    },
  });
  const isLaunchBad = cluster !== undefined && optionsProblem(draft.launch.options, cluster.options) !== null;
  const isNameBad =
    start.error instanceof Problem &&
    (start.error.status === 409 || start.error.fieldProblems.some((p) => p.where === "/name"));
  const count = [...problems.values()].reduce((sum, fieldProblems) => sum + fieldProblems.length, 0);
  const devices = data?.devices ?? [];
  return (
    <Panel title="Start">
      <div className="grid gap-3">
        <RunNameField
          label="Run name"
          value={draft.name}
          onChange={(name) => onPatch({ name })}
          isRefused={isNameBad}
        />
        {devices.length + clusters.length > 1 && (
          <DeviceFields
            devices={devices}
            clusters={clusters}
            selected={draft.devices}
            launch={draft.launch}
            onChange={(selected) => onPatch({ devices: selected })}
            onLaunch={(launch) => onPatch({ launch })}
          />
        )}
        <div role="status" className="min-h-5 text-sm">
          {count === 0 ? (
            <span className={isChecking ? "text-muted-foreground" : "text-success"}>
              {isChecking ? "Checking …" : "Ready to train"}
            </span>
          ) : (
            <span className="font-medium text-warning">
              {count} problem{count > 1 ? "s" : ""} to fix
            </span>
          )}
        </div>
        <Findings problems={problems} hints={hints} onShow={onShow} />
        {start.error && <ErrorAlert error={start.error} />}
        <Button
          kind="primary"
          isBusy={start.isPending}
          disabled={count > 0 || isLaunchBad || nameProblem(draft.name) !== null}
          onClick={() => start.mutate()}
        >
          Start training
        </Button>
        {data && data.runs.length > 0 && (
          <p className="text-xs text-muted-foreground">
            {data.runs.length} run{data.runs.length > 1 ? "s are" : " is"} ahead in the queue.
          </p>
        )}
      </div>
    </Panel>
  );
}
