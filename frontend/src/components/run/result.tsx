"use client";
import { useQuery } from "@tanstack/react-query";
import { LinkButton } from "@/components/ui/button";
import { Panel } from "@/components/ui/surface";
import { fetchJson } from "@/lib/api/client";
import { datasetHref } from "@/lib/api/datasets";

interface Brought {
  target_dir?: string;
  table?: { output?: string };
}

const lastOf = (path: string | undefined) => path?.split("/").at(-1);

/** The data set that a run made; a table's captions are in its JSONL. */
function madeBy(trainer: string, found: unknown): string | undefined {
  const { target_dir, table } = (found ?? {}) as Brought;
  return trainer === "dataset-import" ? lastOf(table?.output ?? target_dir) : undefined;
}

/** What a chore found, as it says it. */
export function Result({ id, trainer, isOver }: { id: string; trainer: string; isOver: boolean }) {
  const { data } = useQuery({
    queryKey: ["run", id, "result", isOver],
    queryFn: () => fetchJson<unknown>(`/api/runs/${encodeURIComponent(id)}/result`),
    retry: false,
  });
  if (data === undefined) return null;
  const made = isOver && madeBy(trainer, data);
  return (
    <Panel
      title="Result"
      actions={
        made && (
          <LinkButton kind="primary" size="small" href={datasetHref(made)}>
            Open {made}
          </LinkButton>
        )
      }
      flush
    >
      <pre
        tabIndex={0}
        className="figure max-h-[32rem] overflow-auto p-4 text-xs leading-5 whitespace-pre-wrap [overflow-wrap:anywhere]"
      >
        {JSON.stringify(data, null, 2)}
      </pre>
    </Panel>
  );
}
