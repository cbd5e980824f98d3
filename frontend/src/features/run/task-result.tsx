"use client";
import { useQuery } from "@tanstack/react-query";
import { LinkButton } from "@/components/ui/button";
import { DownloadIcon } from "@/components/ui/icons";
import { Panel } from "@/components/ui/panel";
import { fetchJson, type Schemas } from "@/lib/api/client";
import { datasetHref } from "@/lib/api/datasets";
import { bytes } from "@/lib/format";

interface Brought {
  target_dir?: string;
  table?: { output?: string };
}

const baseName = (path: string | undefined) => path?.split("/").at(-1);

/** The dataset that a run imported; a table's captions are in its JSONL. */
function importedDataset(trainer: string, result: unknown): string | undefined {
  const { target_dir, table } = (result ?? {}) as Brought;
  return trainer === "dataset-import" ? baseName(table?.output ?? target_dir) : undefined;
}

/** The files and the result of a task. */
export function TaskResult({ id, trainer, isOver }: { id: string; trainer: string; isOver: boolean }) {
  const { data } = useQuery({
    queryKey: ["run", id, "result", isOver],
    queryFn: () => fetchJson<unknown>(`/api/runs/${encodeURIComponent(id)}/result`),
    retry: false,
  });
  const { data: files } = useQuery({
    queryKey: ["run", id, "result-files", isOver],
    queryFn: () => fetchJson<Schemas["ResultFile"][]>(`/api/runs/${encodeURIComponent(id)}/result/files`),
    retry: false,
    enabled: data !== undefined,
  });
  if (data === undefined) return null;
  const datasetName = isOver && importedDataset(trainer, data);
  return (
    <Panel
      title="Result"
      actions={
        datasetName && (
          <LinkButton kind="primary" size="small" href={datasetHref(datasetName)}>
            Open {datasetName}
          </LinkButton>
        )
      }
      flush
    >
      {files && files.length > 0 && (
        <ul className="divide-y border-b" aria-label="Files">
          {files.map((file) => (
            <li key={file.url} className="flex flex-wrap items-center justify-between gap-2 px-4 py-2.5">
              <span className="min-w-0 text-sm [overflow-wrap:anywhere]">
                {file.name} <span className="text-xs text-muted-foreground">{bytes(file.size)}</span>
              </span>
              <a
                href={file.url}
                download
                aria-label={`Download ${file.name}`}
                className="inline-flex h-7 items-center gap-1.5 rounded border bg-card px-2 text-xs font-medium hover:bg-muted"
              >
                <DownloadIcon className="size-3.5" /> Download
              </a>
            </li>
          ))}
        </ul>
      )}
      <details open={!files || files.length === 0}>
        <summary className="cursor-pointer px-4 py-2 text-xs text-secondary-foreground">Details</summary>
        <pre
          tabIndex={0}
          className="figure max-h-[32rem] overflow-auto p-4 pt-0 text-xs leading-5 whitespace-pre-wrap [overflow-wrap:anywhere]"
        >
          {JSON.stringify(data, null, 2)}
        </pre>
      </details>
    </Panel>
  );
}
