"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { IconButton } from "@/components/ui/button";
import { Confirm } from "@/components/ui/dialog";
import { DownloadIcon, TrashIcon } from "@/components/ui/icons";
import { Empty, Panel, Skeleton } from "@/components/ui/surface";
import { useToasts } from "@/components/ui/toasts";
import { Trouble } from "@/components/ui/trouble";
import { api, type Checkpoint, got } from "@/lib/api/client";
import { checkpoints } from "@/lib/api/queries";
import { ago, bytes } from "@/lib/format";

function Row({ checkpoint, onDelete }: { checkpoint: Checkpoint; onDelete: () => void }) {
  return (
    <li className="px-4 py-2.5">
      <div className="flex items-center justify-between gap-2">
        <span className="figure text-sm">{checkpoint.name}</span>
        <span className="flex items-center gap-2 text-xs text-ink-faint">
          {bytes(checkpoint.size)} · {ago(checkpoint.time)}
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
              className="inline-flex min-h-6 items-center gap-1.5 text-xs font-medium text-indigo hover:underline"
            >
              <DownloadIcon className="size-3.5" />
              {file.name}
              <span className="font-normal text-ink-faint">{bytes(file.size)}</span>
            </a>
          </li>
        ))}
      </ul>
    </li>
  );
}

/** What the run saved, to download. */
export function Checkpoints({ id, isActive }: { id: string; isActive: boolean }) {
  const { data, error, refetch } = useQuery({
    ...checkpoints(id),
    refetchInterval: isActive ? 15_000 : false,
  });
  const [doomed, setDoomed] = useState<string | null>(null);
  const client = useQueryClient();
  const { complain, say } = useToasts();
  const remove = useMutation({
    mutationFn: (name: string) =>
      got(api.DELETE("/api/runs/{run_id}/checkpoints/{name}", { params: { path: { run_id: id, name } } })),
    onSuccess: (_, name) => {
      say(`${name} is deleted.`);
      void client.invalidateQueries({ queryKey: ["run", id] });
    },
    onError: complain,
  });
  return (
    <Panel title="Checkpoints" flush>
      {error && !data ? (
        <div className="p-4">
          <Trouble error={error} onRetry={() => void refetch()} />
        </div>
      ) : !data ? (
        <div className="p-4">
          <Skeleton className="h-10" />
        </div>
      ) : data.checkpoints.length === 0 ? (
        <Empty title="No checkpoints yet">
          {isActive ? "“Save now” makes one at the next step." : "The run ended before it saved one."}
        </Empty>
      ) : (
        <ul className="max-h-96 divide-y overflow-y-auto">
          {data.checkpoints.map((checkpoint) => (
            <Row key={checkpoint.name} checkpoint={checkpoint} onDelete={() => setDoomed(checkpoint.name)} />
          ))}
        </ul>
      )}
      <Confirm
        title={`Delete ${doomed}?`}
        isOpen={doomed !== null}
        onClose={() => setDoomed(null)}
        onConfirm={() => doomed && remove.mutate(doomed)}
        confirm="Delete it"
      >
        Its weights and its state go for good.
      </Confirm>
    </Panel>
  );
}
