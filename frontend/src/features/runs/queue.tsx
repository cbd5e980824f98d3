"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import Link from "next/link";
import { useState } from "react";
import { Button, IconButton } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { DownIcon, GripIcon, UpIcon, WarnIcon } from "@/components/ui/icons";
import { Select } from "@/components/ui/inputs";
import { Panel } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { runHref } from "@/features/run/run-progress";
import { useRunAction } from "@/hooks/use-run-action";
import { api, type Schemas, unwrap } from "@/lib/api/client";
import { queue } from "@/lib/api/queries";
import { ago } from "@/lib/format";

/** The run before which `ids[from]` is placed if dropped at index `to`; null: the end. */
export function placeBefore(ids: readonly string[], from: number, to: number): string | null {
  const rest = ids.filter((_, index) => index !== from);
  return rest[to] ?? null;
}

/** The move that puts `dragged` at the place of `target`; null if one of them has left the queue or both are the same. */
export function dropOf(
  ids: readonly string[],
  dragged: string | null,
  target: string,
): { id: string; before: string | null } | null {
  const from = dragged === null ? -1 : ids.indexOf(dragged);
  const to = ids.indexOf(target);
  if (dragged === null || from < 0 || to < 0 || from === to) return null;
  return { id: dragged, before: placeBefore(ids, from, to) };
}

/** `runs` after a move. */
export function movedIn<Run extends { id: string }>(runs: Run[], id: string, before: string | null): Run[] {
  const run = runs.find((each) => each.id === id);
  const rest = runs.filter((each) => each.id !== id);
  const index = before === null ? rest.length : rest.findIndex((each) => each.id === before);
  return run && index >= 0 ? rest.toSpliced(index, 0, run) : runs;
}

/** The queue's controls: pause, and what happens if a run fails. */
function QueueControls({ page }: { page: Schemas["QueuePage"] }) {
  const client = useQueryClient();
  const { notifyError } = useToasts();
  const { mutate, isPending } = useMutation({
    mutationFn: (body: Schemas["QueueChange"]) => unwrap(api.PATCH("/api/queue", { body })),
    onSuccess: (changed) => client.setQueryData(queue.queryKey, changed),
    onError: notifyError,
  });
  return (
    <>
      <label className="flex items-center gap-1.5 text-xs whitespace-nowrap text-secondary-foreground">
        If a run fails
        <Select
          className="w-auto! h-7 text-xs"
          value={page.on_fail}
          disabled={isPending}
          onChange={({ target }) => mutate({ on_fail: target.value as Schemas["QueuePage"]["on_fail"] })}
        >
          <option value="continue">continue queue</option>
          <option value="pause">pause queue</option>
        </Select>
      </label>
      <Button
        size="small"
        kind={page.pause ? "primary" : "plain"}
        isBusy={isPending}
        onClick={() => mutate({ paused: !page.pause })}
      >
        {page.pause ? "Resume queue" : "Pause queue"}
      </Button>
    </>
  );
}

/** The time and reason of the pause. */
function PauseNotice({ pause }: { pause: Schemas["Pause"] }) {
  return (
    <p role="status" className="flex items-center gap-2 bg-warning-subtle px-4 py-2 text-sm">
      <WarnIcon className="size-4 shrink-0 text-warning" />
      <span>
        {pause.run ? (
          <>
            <Link href={runHref(pause.run)} className="font-medium underline">
              {pause.run}
            </Link>{" "}
            failed {ago(pause.since)}.
          </>
        ) : (
          `Paused ${ago(pause.since)}.`
        )}{" "}
        No new runs start until you resume the queue. Current runs continue.
      </span>
    </p>
  );
}

/** The queued runs in order, to be moved by drag or buttons. */
export function QueuePanel() {
  const { data } = useQuery(queue);
  // By name: the queue may change while a run is being dragged.
  const [dragged, setDragged] = useState<string | null>(null);
  const [over, setOver] = useState<string | null>(null);
  const client = useQueryClient();
  const { notifyError } = useToasts();
  const { mutate } = useRunAction();
  const move = useMutation({
    mutationFn: ({ id, before }: { id: string; before: string | null }) =>
      unwrap(api.POST("/api/runs/{run_id}/move", { params: { path: { run_id: id } }, body: { before } })),
    onMutate: async ({ id, before }) => {
      await client.cancelQueries({ queryKey: queue.queryKey });
      client.setQueryData(queue.queryKey, (old) => old && { ...old, runs: movedIn(old.runs, id, before) });
    },
    onError: notifyError,
    onSettled: () => client.invalidateQueries({ queryKey: ["queue"] }),
  });
  const runs = data?.runs ?? [];
  const ids = runs.map((run) => run.id);
  const shift = (from: number, to: number) => {
    const target = ids[to];
    const reordering = target === undefined ? null : dropOf(ids, ids[from] ?? null, target);
    if (reordering) move.mutate(reordering);
  };
  if (!data || (runs.length === 0 && !data.pause && data.on_fail === "continue")) return null;
  return (
    <Panel
      title={`Queue (${runs.length})`}
      actions={<QueueControls page={data} />}
      flush
      className="mb-4 overflow-hidden"
    >
      {data.pause && <PauseNotice pause={data.pause} />}
      <ol className="divide-y">
        {runs.map((run, index) => (
          <li
            key={run.id}
            draggable
            onDragStart={(event) => {
              event.dataTransfer.setData("text/plain", run.id);
              setDragged(run.id);
            }}
            onDragOver={(event) => {
              if (dragged === null) return;
              event.preventDefault();
              setOver(run.id);
            }}
            onDrop={(event) => {
              event.preventDefault();
              const reordering = dropOf(ids, dragged, run.id);
              if (reordering) move.mutate(reordering);
            }}
            onDragEnd={() => {
              setDragged(null);
              setOver(null);
            }}
            className={cx(
              "flex items-center gap-3 px-3 py-1.5",
              dragged === run.id && "opacity-40",
              over === run.id && dragged !== null && "bg-accent",
            )}
          >
            <GripIcon className="size-4 cursor-grab text-muted-foreground" />
            <span className="figure w-5 text-right text-xs text-muted-foreground">{index + 1}</span>
            <Link
              href={runHref(run.id)}
              className="min-w-0 flex-1 truncate text-sm font-medium hover:underline"
            >
              {run.id}
            </Link>
            <span className="text-xs text-muted-foreground max-sm:hidden">
              {(!data.pause && run.note) || run.devices?.join(", ")}
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
