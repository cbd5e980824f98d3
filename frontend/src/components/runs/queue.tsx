"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import Link from "next/link";
import { useState } from "react";
import { runHref } from "@/components/run/progress";
import { Button, IconButton } from "@/components/ui/button";
import { cx } from "@/components/ui/classes";
import { DownIcon, GripIcon, UpIcon } from "@/components/ui/icons";
import { Panel } from "@/components/ui/surface";
import { useToasts } from "@/components/ui/toasts";
import { useAction } from "@/lib/actions";
import { api, got } from "@/lib/api/client";
import { queue } from "@/lib/api/queries";

/** Before which run `ids[from]` goes when it is let go at place `to`; null: to the end. */
export function placeBefore(ids: readonly string[], from: number, to: number): string | null {
  const rest = ids.filter((_, index) => index !== from);
  return rest[to] ?? null;
}

/** What waits, in its order: drag it, or move it by its arrows. */
export function Queue() {
  const { data } = useQuery(queue);
  const [dragged, setDragged] = useState<number | null>(null);
  const [over, setOver] = useState<number | null>(null);
  const client = useQueryClient();
  const { complain } = useToasts();
  const { mutate } = useAction();
  const move = useMutation({
    mutationFn: ({ id, before }: { id: string; before: string | null }) =>
      got(api.POST("/api/runs/{run_id}/move", { params: { path: { run_id: id } }, body: { before } })),
    onError: complain,
    onSettled: () => client.invalidateQueries({ queryKey: ["queue"] }),
  });
  const runs = data?.runs ?? [];
  const ids = runs.map((run) => run.id);
  const shift = (from: number, to: number) => {
    const id = ids[from];
    if (id && to >= 0 && to < ids.length && to !== from)
      move.mutate({ id, before: placeBefore(ids, from, to) });
  };
  if (runs.length === 0) return null;
  return (
    <Panel title={`Queue (${runs.length})`} flush className="mb-4">
      <ol className="divide-y">
        {runs.map((run, index) => (
          <li
            key={run.id}
            draggable
            onDragStart={() => setDragged(index)}
            onDragOver={(event) => {
              event.preventDefault();
              setOver(index);
            }}
            onDragEnd={() => {
              if (dragged !== null && over !== null) shift(dragged, over);
              setDragged(null);
              setOver(null);
            }}
            className={cx(
              "flex items-center gap-3 px-3 py-1.5",
              dragged === index && "opacity-40",
              over === index && dragged !== null && "bg-indigo-soft",
            )}
          >
            <GripIcon className="size-4 cursor-grab text-ink-faint" />
            <span className="figure w-5 text-right text-xs text-ink-faint">{index + 1}</span>
            <Link
              href={runHref(run.id)}
              className="min-w-0 flex-1 truncate text-sm font-medium hover:underline"
            >
              {run.id}
            </Link>
            <span className="text-xs text-ink-faint max-sm:hidden">
              {run.note ?? run.devices?.join(", ")}
            </span>
            <IconButton
              label={`Move ${run.id} up`}
              disabled={index === 0}
              onClick={() => shift(index, index - 1)}
            >
              <UpIcon className="size-3.5" />
            </IconButton>
            <IconButton
              label={`Move ${run.id} down`}
              disabled={index === runs.length - 1}
              onClick={() => shift(index, index + 1)}
            >
              <DownIcon className="size-3.5" />
            </IconButton>
            <Button size="small" kind="quiet" onClick={() => mutate({ action: "cancel", id: run.id })}>
              Cancel
            </Button>
          </li>
        ))}
      </ol>
    </Panel>
  );
}
