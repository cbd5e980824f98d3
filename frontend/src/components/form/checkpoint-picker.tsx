"use client";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { ChevronIcon } from "@/components/ui/icons";
import { Checkbox } from "@/components/ui/inputs";
import { Empty, Skeleton } from "@/components/ui/panel";
import { type Library, library } from "@/lib/api/models";
import { checkpoints, isTraining, roots, runs } from "@/lib/api/queries";
import { ago, bytes } from "@/lib/format";

/** Kinds of model files that can generate images, alone or on a base model. */
const SAMPLING_KINDS = new Set(["lora", "checkpoint", "network"]);

interface Selection {
  chosen: ReadonlySet<string>;
  onToggle: (path: string) => void;
}

function Entry({
  path,
  name,
  note,
  chosen,
  onToggle,
}: Selection & { path: string; name: string; note: string }) {
  return (
    <li>
      <label className="flex min-h-8 items-center gap-2.5 px-3 py-1 text-sm hover:bg-muted">
        <Checkbox checked={chosen.has(path)} onChange={() => onToggle(path)} />
        <span className="flex min-w-0 flex-1 items-baseline justify-between gap-x-2.5 max-sm:flex-col">
          <span className="figure max-w-full truncate text-xs" title={path}>
            {name}
          </span>
          <span className="text-xs text-muted-foreground sm:shrink-0">{note}</span>
        </span>
      </label>
    </li>
  );
}

/** A group that loads its list when opened, with the number of selected entries. */
function Group({
  title,
  num,
  isFirst,
  children,
}: {
  title: string;
  num: number;
  isFirst: boolean;
  children: (isOpen: boolean) => React.ReactNode;
}) {
  const [isOpen, setOpen] = useState(isFirst || num > 0);
  return (
    <details
      open={isOpen}
      onToggle={(event) => setOpen(event.currentTarget.open)}
      className="group rounded border"
    >
      <summary className="flex h-9 items-center gap-2 px-3 text-sm font-medium hover:bg-muted">
        <ChevronIcon className="size-3.5 transition-transform group-open:rotate-90" />
        <span className="min-w-0 flex-1 truncate">{title}</span>
        {num > 0 && <span className="figure text-xs text-primary">{num} selected</span>}
      </summary>
      <div className="border-t py-1">{children(isOpen)}</div>
    </details>
  );
}

function RunCheckpoints({
  id,
  dir,
  isOpen,
  ...selection
}: Selection & { id: string; dir: string; isOpen: boolean }) {
  const { data, error } = useQuery({ ...checkpoints(id), enabled: isOpen });
  if (error) return <ErrorAlert error={error} />;
  if (!data) return <Skeleton className="m-2 h-8" />;
  const entries = data.checkpoints.map((each) => ({ ...each, path: `${dir}/checkpoints/${each.name}` }));
  if (entries.length === 0)
    return <p className="px-3 py-1.5 text-xs text-muted-foreground">No checkpoints yet.</p>;
  const areAllSelected = entries.every((each) => selection.chosen.has(each.path));
  return (
    <ul aria-label={`Checkpoints of ${id}`}>
      {entries.map(({ path, name, size, time }) => (
        <Entry key={path} path={path} name={name} note={`${bytes(size)} · ${ago(time)}`} {...selection} />
      ))}
      {entries.length > 1 && (
        <li className="px-3 py-1">
          <Button
            size="small"
            kind="quiet"
            onClick={() => {
              for (const { path } of entries)
                if (selection.chosen.has(path) === areAllSelected) selection.onToggle(path);
            }}
          >
            {areAllSelected ? "Clear selection" : "Select all"}
          </Button>
        </li>
      )}
    </ul>
  );
}

/** LoRAs and weights outside the runs; checkpoints of runs have their own groups. */
const modelsOutsideRuns = (models: Library | undefined, runsDir: string) =>
  models?.models.filter((each) => SAMPLING_KINDS.has(each.kind) && !each.path.startsWith(`${runsDir}/`)) ??
  [];

function List(selection: Selection) {
  const { data: folders } = useQuery(roots);
  const { data: page, error } = useQuery(runs());
  const { data: models } = useQuery({ ...library, retry: false });
  const dir = folders?.find((root) => root.name === "runs")?.path;
  if (error) return <ErrorAlert error={error} />;
  if (!page || !dir) return <Skeleton className="h-40" />;
  const trained = page.runs.filter((run) => isTraining(run) && run.checkpoint);
  const loose = modelsOutsideRuns(models, dir);
  const numOf = (is: (path: string) => boolean) => [...selection.chosen].filter(is).length;
  if (trained.length + loose.length === 0)
    return (
      <Empty title="No models to sample with yet">Checkpoints appear here after a run saves them.</Empty>
    );
  return (
    <div className="grid grid-cols-1 gap-2">
      {trained.map((run, index) => (
        <Group
          key={run.id}
          title={run.id}
          num={numOf((path) => path.startsWith(`${dir}/${run.id}/`))}
          isFirst={index === 0}
        >
          {(isOpen) => <RunCheckpoints id={run.id} dir={`${dir}/${run.id}`} isOpen={isOpen} {...selection} />}
        </Group>
      ))}
      {loose.length > 0 && (
        <Group
          title="Models"
          num={numOf((path) => loose.some((each) => each.path === path))}
          isFirst={trained.length === 0}
        >
          {() => (
            <ul aria-label="Models">
              {loose.map(({ path, name, description, size }) => (
                <Entry
                  key={path}
                  path={path}
                  name={name}
                  note={`${description} · ${bytes(size)}`}
                  {...selection}
                />
              ))}
            </ul>
          )}
        </Group>
      )}
    </div>
  );
}

/** Select checkpoints of runs and model files; existing paths are kept. */
export function CheckpointPicker({
  value,
  onChange,
}: {
  value: string[];
  onChange: (paths: string[]) => void;
}) {
  const [isOpen, setOpen] = useState(false);
  const chosen = new Set(value);
  const onToggle = (path: string) => {
    if (!chosen.delete(path)) chosen.add(path);
    onChange([...chosen].filter(Boolean));
  };
  return (
    <>
      <Button size="small" className="justify-self-start" onClick={() => setOpen(true)}>
        Choose checkpoints
      </Button>
      <Dialog title="Choose checkpoints" isOpen={isOpen} onClose={() => setOpen(false)} width="max-w-2xl">
        <List chosen={chosen} onToggle={onToggle} />
        <div className="mt-4 flex items-center justify-end gap-3">
          <span role="status" className="text-xs text-secondary-foreground">
            {chosen.size} selected
          </span>
          <Button kind="primary" onClick={() => setOpen(false)}>
            Done
          </Button>
        </div>
      </Dialog>
    </>
  );
}
