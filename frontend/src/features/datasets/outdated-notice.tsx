"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import Link from "next/link";
import type { ReactNode } from "react";
import { Button } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { ErrorAlert } from "@/components/ui/error-alert";
import { WarnIcon } from "@/components/ui/icons";
import { runHref } from "@/features/run/run-progress";
import { datasetApi, freshness } from "@/lib/api/datasets";
import { ACTIVE, readRun } from "@/lib/api/queries";
import { count } from "@/lib/format";

const FOLLOW_MS = 700;

/** Rebuild a JSONL, at once or in a run that is polled until it ends. */
export function useUpdate(name: string) {
  const client = useQueryClient();
  const finish = () => {
    for (const key of [["freshness"], ["datasets"], ["dataset", name]]) {
      void client.invalidateQueries({ queryKey: key });
    }
  };
  const update = useMutation({
    mutationFn: () => datasetApi.update(name),
    onSuccess: ({ run }) => {
      if (!run) finish();
    },
  });
  const id = update.data?.run?.id;
  const { data: run } = useQuery({
    queryKey: ["run", id, "followed"],
    queryFn: async () => {
      const current = await readRun(id ?? "");
      if (!ACTIVE.has(current.state)) finish();
      return current;
    },
    enabled: id !== undefined,
    refetchInterval: ({ state }) => (!state.data || ACTIVE.has(state.data.state) ? FOLLOW_MS : false),
  });
  const isFollowed = id !== undefined && (!run || ACTIVE.has(run.state));
  return { update, run, isBusy: update.isPending || isFollowed };
}

/** A warning if a JSONL differs from its folder, with an update button; otherwise nothing. */
export function OutdatedNotice({
  name,
  isSmall,
  children,
}: {
  name: string;
  isSmall?: boolean;
  children?: ReactNode;
}) {
  const { data } = useQuery(freshness(name));
  const { update, run, isBusy } = useUpdate(name);
  if (!data?.is_outdated) return null;
  const rows = `${count(data.num_changed)} row${data.num_changed === 1 ? " differs" : "s differ"}`;
  return (
    <div
      role="status"
      className={cx(
        "flex flex-wrap items-center gap-x-3 gap-y-2 rounded-lg border border-warning bg-warning-subtle",
        isSmall ? "px-3 py-2 text-xs" : "mb-4 px-4 py-2.5 text-sm",
      )}
    >
      <WarnIcon className="size-4 shrink-0 text-warning" />
      <p className="min-w-0 flex-1 basis-56 [overflow-wrap:anywhere]">
        <strong>{name} is outdated:</strong> {rows} from the images and captions in its folder. Training on it
        would use the old ones.
        {data.is_edited && " The JSONL was edited directly; updating discards those edits."}
        {run?.state === "failed" && (
          <>
            {" "}
            <Link href={runHref(run.id)} className="text-primary underline">
              The update failed.
            </Link>
          </>
        )}
      </p>
      {update.error && <ErrorAlert error={update.error} />}
      <Button size="small" isBusy={isBusy} onClick={() => update.mutate()}>
        {data.is_edited ? "Update, discard edits" : "Update"}
      </Button>
      {children}
    </div>
  );
}
