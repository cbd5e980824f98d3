"use client";
import { useQuery } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useMemo, useState } from "react";
import { Button } from "@/components/ui/button";
import { Confirm } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { SearchInput } from "@/components/ui/inputs";
import { Empty, Page, Panel, Skeleton } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { StartButtons } from "@/features/home/start-buttons";
import { type Action, useRunAction } from "@/hooks/use-run-action";
import type { RunView } from "@/lib/api/client";
import { ACTIVE, RUNS_AT_ONCE, runs as runsQuery } from "@/lib/api/queries";
import { ImportRun } from "./import-run";
import { QueuePanel } from "./queue";
import { RunsTable } from "./runs-table";

type Filter = "all" | "active" | "done" | "broken";

const FILTERS: Record<Filter, (run: RunView) => boolean> = {
  all: () => true,
  active: (run) => ACTIVE.has(run.state),
  done: (run) => run.state === "finished" || run.state === "stopped",
  broken: (run) => ["failed", "interrupted", "damaged"].includes(run.state),
};
const MAX_COMPARED = 8;

/** Actions on all selected runs. */
function SelectionActions({ chosen, onDone }: { chosen: RunView[]; onDone: () => void }) {
  const router = useRouter();
  const { mutate } = useRunAction();
  const [isAsking, setAsking] = useState(false);
  const applicable: Record<"stop" | "resume" | "cancel" | "delete", RunView[]> = {
    stop: chosen.filter((run) => run.state === "running"),
    resume: chosen.filter((run) => run.can_resume),
    cancel: chosen.filter((run) => run.state === "queued"),
    delete: chosen.filter((run) => !ACTIVE.has(run.state)),
  };
  const all = (action: Action & keyof typeof applicable) => {
    for (const run of applicable[action]) mutate({ action, id: run.id });
    onDone();
  };
  const compare = () => {
    const [first, ...rest] = chosen.map((run) => run.id);
    if (!first) return;
    const query = new URLSearchParams({ id: first });
    for (const other of rest) query.append("with", other);
    router.push(`/runs/?${query}`);
  };
  return (
    <div className="flex flex-wrap items-center gap-1.5" role="toolbar" aria-label="Selection">
      <span className="mr-1 text-xs text-secondary-foreground">{chosen.length} selected</span>
      <Button size="small" disabled={chosen.length < 2 || chosen.length > MAX_COMPARED} onClick={compare}>
        Compare
      </Button>
      {applicable.stop.length > 0 && (
        <Button size="small" onClick={() => all("stop")}>
          Save and stop
        </Button>
      )}
      {applicable.resume.length > 0 && (
        <Button size="small" onClick={() => all("resume")}>
          Resume
        </Button>
      )}
      {applicable.cancel.length > 0 && (
        <Button size="small" onClick={() => all("cancel")}>
          Cancel
        </Button>
      )}
      {applicable.delete.length > 0 && (
        <Button size="small" kind="danger" onClick={() => setAsking(true)}>
          Delete {applicable.delete.length}
        </Button>
      )}
      <Button size="small" kind="quiet" onClick={onDone}>
        {" "}
        Clear selection{" "}
      </Button>
      <Confirm
        title={`Delete ${applicable.delete.length} runs?`}
        isOpen={isAsking}
        onClose={() => setAsking(false)}
        onConfirm={() => all("delete")}
        confirm="Delete"
      >
        This permanently deletes their checkpoints, samples and history:{" "}
        {applicable.delete.map((run) => run.id).join(", ")}.
      </Confirm>
    </div>
  );
}

export function RunsPage() {
  const [skip, setSkip] = useState(0);
  const { data, error, refetch } = useQuery(runsQuery([], RUNS_AT_ONCE, skip));
  const [filter, setFilter] = useState<Filter>("all");
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  const all = useMemo(() => data?.runs ?? [], [data]);
  const shown = useMemo(() => {
    const terms = search.toLowerCase().split(/\s+/).filter(Boolean);
    const isFound = (run: RunView) =>
      terms.every((term) => `${run.id} ${run.trainer}`.toLowerCase().includes(term));
    return all.filter((run) => FILTERS[filter](run) && isFound(run));
  }, [all, filter, search]);
  const choose = (ids: string[], isChosen: boolean) =>
    setChosen((old) => {
      const next = new Set(old);
      for (const id of ids) isChosen ? next.add(id) : next.delete(id);
      return next;
    });
  const selectedRuns = all.filter((run) => chosen.has(run.id));
  const count = (name: Filter) => all.filter(FILTERS[name]).length;
  return (
    <Page
      title="Runs"
      lead="Training runs and queue"
      actions={
        <>
          <ImportRun />
          <StartButtons />
        </>
      }
      wide
    >
      <QueuePanel />
      <Panel
        flush
        title={
          <ToggleGroup
            label="Filter runs"
            value={filter}
            onChange={setFilter}
            options={[
              { value: "all", label: `All ${data?.total ?? ""}` },
              { value: "active", label: `Active ${count("active")}` },
              { value: "done", label: `Done ${count("done")}` },
              { value: "broken", label: `Failed ${count("broken")}` },
            ]}
          />
        }
        actions={
          selectedRuns.length > 0 ? (
            <SelectionActions chosen={selectedRuns} onDone={() => setChosen(new Set())} />
          ) : (
            <SearchInput isSmall className="w-52" label="Search runs" value={search} onSearch={setSearch} />
          )
        }
      >
        {error && !data ? (
          <div className="p-4">
            <ErrorAlert error={error} onRetry={() => void refetch()} />
          </div>
        ) : !data ? (
          <div className="grid gap-3 p-4">
            {[0, 1, 2, 3, 4].map((index) => (
              <Skeleton key={index} className="h-10" />
            ))}
          </div>
        ) : shown.length === 0 ? (
          <Empty title={all.length === 0 ? "No runs yet" : "No matching runs"}>
            {all.length === 0
              ? "Try the demo to start one. Runs started from the command line in the runs folder appear here too."
              : "Change the search, or show all runs."}
          </Empty>
        ) : (
          <RunsTable
            runs={shown}
            chosen={chosen}
            onChoose={(id, isChosen) => choose([id], isChosen)}
            onChooseAll={(isChosen) =>
              choose(
                shown.map((run) => run.id),
                isChosen,
              )
            }
          />
        )}
        {data && (skip > 0 || data.total > all.length) && (
          <footer className="flex items-center justify-end gap-2 border-t px-4 py-2 text-xs text-secondary-foreground">
            Runs {skip + 1} to {skip + all.length} of {data.total}, newest first
            <Button
              size="small"
              disabled={skip === 0}
              onClick={() => setSkip(Math.max(0, skip - RUNS_AT_ONCE))}
            >
              Newer
            </Button>
            <Button
              size="small"
              disabled={skip + all.length >= data.total}
              onClick={() => setSkip(skip + RUNS_AT_ONCE)}
            >
              Older
            </Button>
          </footer>
        )}
      </Panel>
    </Page>
  );
}
