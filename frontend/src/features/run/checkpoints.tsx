"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useState } from "react";
import { TaskDialog, type TaskRequest } from "@/components/form/task-form";
import { Button, IconButton } from "@/components/ui/button";
import { Confirm } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { DownloadIcon, TrashIcon } from "@/components/ui/icons";
import { Menu } from "@/components/ui/menu";
import { Empty, Panel, Skeleton } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { api, type Checkpoint, startTask, unwrap } from "@/lib/api/client";
import { checkpoints, roots, runConfig } from "@/lib/api/queries";
import { ago, bytes } from "@/lib/format";
import type { Tree } from "@/lib/json";
import { hasAverage, sampleConfig } from "@/lib/sample-config";
import { runHref } from "./run-progress";

interface RowProps {
  checkpoint: Checkpoint;
  /** Its path; null until it is known. */
  path: string | null;
  /** Generate images with EMA and raw weights; absent if the run has no EMA. */
  onCompareEma?: () => void;
  onDelete: () => void;
  onAsk: (request: TaskRequest) => void;
}

function Row({ checkpoint, path, onCompareEma, onDelete, onAsk }: RowProps) {
  const router = useRouter();
  return (
    <li className="px-4 py-2.5">
      <div className="flex items-center justify-between gap-2">
        <span className="figure text-sm">{checkpoint.name}</span>
        <span className="flex items-center gap-2 text-xs text-muted-foreground">
          {bytes(checkpoint.size)} · {ago(checkpoint.time)}
          {path && (
            <Menu
              size="small"
              label="Use"
              items={[
                {
                  label: "Generate images",
                  onChoose: () => router.push(`/playground/?source=${encodeURIComponent(path)}`),
                },
                ...(onCompareEma
                  ? [
                      {
                        label: "Compare EMA with raw",
                        note: "Generates images with both",
                        onChoose: onCompareEma,
                      },
                    ]
                  : []),
                {
                  label: "Export …",
                  note: "A LoRA for ComfyUI, sd-scripts or diffusers",
                  onChoose: () =>
                    onAsk({
                      task: "export",
                      title: `Export ${checkpoint.name}`,
                      initial: { source_path: path },
                    }),
                },
                {
                  label: "Merge into base model …",
                  onChoose: () =>
                    onAsk({
                      task: "merge",
                      title: `Merge ${checkpoint.name}`,
                      initial: { source_path: path },
                    }),
                },
              ]}
            />
          )}
          <IconButton label={`Delete ${checkpoint.name}`} onClick={onDelete}>
            <TrashIcon className="size-3.5" />
          </IconButton>
        </span>
      </div>
      <ul className="mt-1 flex flex-wrap gap-x-4 gap-y-1">
        {checkpoint.files.map((file) => (
          <li key={file.url}>
            <a
              href={file.url}
              download
              className="inline-flex min-h-6 items-center gap-1.5 text-xs font-medium text-primary hover:underline"
            >
              <DownloadIcon className="size-3.5" />
              {file.name}
              <span className="font-normal text-muted-foreground">
                {bytes(file.size)}
                {/^adapter(_ema)?\.safetensors$/.test(file.name) && ", loads in ComfyUI"}
              </span>
            </a>
          </li>
        ))}
      </ul>
    </li>
  );
}

/** The run's checkpoints, to download and use. */
export function Checkpoints({ id, isActive }: { id: string; isActive: boolean }) {
  const { data, error, refetch } = useQuery({
    ...checkpoints(id),
    refetchInterval: isActive ? 15_000 : false,
  });
  const [toDelete, setToDelete] = useState<string | null>(null);
  const [request, setRequest] = useState<TaskRequest | null>(null);
  const { data: folders } = useQuery(roots);
  const runsDir = folders?.find((root) => root.name === "runs")?.path;
  const client = useQueryClient();
  const { notifyError, notify } = useToasts();
  const router = useRouter();
  const { data: runInfo } = useQuery(runConfig(id));
  const config = runInfo?.config as Tree | undefined;
  const pathOf = (name: string) => `${runsDir}/${id}/checkpoints/${name}`;
  const sample = useMutation({
    mutationFn: (grid: Tree) => startTask("sample", sampleConfig(config ?? {}, grid)),
    onSuccess: (run) => router.push(runHref(run.id)),
    onError: notifyError,
  });
  const remove = useMutation({
    mutationFn: (name: string) =>
      unwrap(api.DELETE("/api/runs/{run_id}/checkpoints/{name}", { params: { path: { run_id: id, name } } })),
    onSuccess: (_, name) => {
      notify(`${name} deleted.`);
      void client.invalidateQueries({ queryKey: ["run", id] });
    },
    onError: notifyError,
  });
  return (
    <Panel
      title="Checkpoints"
      flush
      actions={
        config &&
        runsDir &&
        (data?.checkpoints.length ?? 0) > 1 && (
          <Button
            size="small"
            kind="quiet"
            isBusy={sample.isPending}
            onClick={() =>
              sample.mutate({
                source_paths: (data?.checkpoints ?? []).map((each) => pathOf(each.name)).reverse(),
              })
            }
          >
            Compare checkpoints
          </Button>
        )
      }
    >
      {error && !data ? (
        <div className="p-4">
          <ErrorAlert error={error} onRetry={() => void refetch()} />
        </div>
      ) : !data ? (
        <div className="p-4">
          <Skeleton className="h-10" />
        </div>
      ) : data.checkpoints.length === 0 ? (
        <Empty title="No checkpoints yet">
          {isActive ? "“Save now” saves one at the next step." : "The run ended before it saved one."}
        </Empty>
      ) : (
        <ul className="max-h-96 divide-y overflow-y-auto">
          {data.checkpoints.map((checkpoint) => (
            <Row
              key={checkpoint.name}
              checkpoint={checkpoint}
              path={runsDir ? pathOf(checkpoint.name) : null}
              onCompareEma={
                config && hasAverage(config)
                  ? () => sample.mutate({ source_paths: [pathOf(checkpoint.name)], weights: ["raw", "ema"] })
                  : undefined
              }
              onDelete={() => setToDelete(checkpoint.name)}
              onAsk={setRequest}
            />
          ))}
        </ul>
      )}
      <TaskDialog request={request} onClose={() => setRequest(null)} />
      <Confirm
        title={`Delete ${toDelete}?`}
        isOpen={toDelete !== null}
        onClose={() => setToDelete(null)}
        onConfirm={() => toDelete && remove.mutate(toDelete)}
        confirm="Delete"
      >
        This permanently deletes its weights and training state.
      </Confirm>
    </Panel>
  );
}
