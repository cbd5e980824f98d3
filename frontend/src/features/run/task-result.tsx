"use client";
import { useQuery } from "@tanstack/react-query";
import { LinkButton } from "@/components/ui/button";
import { DownloadIcon } from "@/components/ui/icons";
import { Panel } from "@/components/ui/panel";
import { runHref } from "@/features/run/run-progress";
import { api, unwrap } from "@/lib/api/client";
import { datasetHref } from "@/lib/api/datasets";
import { bytes } from "@/lib/format";
import { at, isTree } from "@/lib/json";

const baseName = (path: unknown) => (typeof path === "string" ? path.split("/").at(-1) : undefined);

/** The dataset that a run imported; a table's captions are in its JSONL. */
function importedDataset(trainer: string, result: unknown): string | undefined {
  if (trainer !== "dataset-import" || !isTree(result)) return undefined;
  return baseName(at(result, ["table", "output"]) ?? result.target_dir);
}

/** The files and the result of a task. */
export function TaskResult({ id, trainer, isOver }: { id: string; trainer: string; isOver: boolean }) {
  const { data } = useQuery({
    queryKey: ["run", id, "result", isOver],
    queryFn: () => unwrap(api.GET("/api/runs/{run_id}/result", { params: { path: { run_id: id } } })),
    retry: false,
  });
  const { data: files } = useQuery({
    queryKey: ["run", id, "result-files", isOver],
    queryFn: () => unwrap(api.GET("/api/runs/{run_id}/result/files", { params: { path: { run_id: id } } })),
    retry: false,
    enabled: data !== undefined,
  });
  if (data === undefined) return null;
  const importedRun =
    isOver && trainer === "run-import" && isTree(data) && typeof data.run === "string" && data.run;
  const datasetName = isOver && importedDataset(trainer, data);
  return (
    <Panel
      title="Result"
      actions={
        (datasetName || importedRun) && (
          <LinkButton
            kind="primary"
            size="small"
            href={importedRun ? runHref(importedRun) : datasetHref(datasetName || "")}
          >
            Open {importedRun || datasetName}
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
