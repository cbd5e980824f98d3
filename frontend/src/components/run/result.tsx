"use client";
import { useQuery } from "@tanstack/react-query";
import { Panel } from "@/components/ui/surface";
import { fetchJson } from "@/lib/api/client";

/** What a chore found, as it says it. */
export function Result({ id, isOver }: { id: string; isOver: boolean }) {
  const { data } = useQuery({
    queryKey: ["run", id, "result", isOver],
    queryFn: () => fetchJson<unknown>(`/api/runs/${encodeURIComponent(id)}/result`),
    retry: false,
  });
  if (data === undefined) return null;
  return (
    <Panel title="Result" flush>
      <pre
        tabIndex={0}
        className="figure max-h-[32rem] overflow-auto p-4 text-xs leading-5 whitespace-pre-wrap [overflow-wrap:anywhere]"
      >
        {JSON.stringify(data, null, 2)}
      </pre>
    </Panel>
  );
}
