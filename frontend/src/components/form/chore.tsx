"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useCallback, useMemo, useState } from "react";
import { runHref } from "@/components/run/progress";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { Empty, Skeleton } from "@/components/ui/surface";
import { Trouble } from "@/components/ui/trouble";
import { fetchJson, Problem, type RunView } from "@/lib/api/client";
import { trainerConfig } from "@/lib/api/queries";
import { byPath, useCheck } from "@/lib/check";
import { changesFrom, type Json, laidOver, type Tree, withAt } from "@/lib/json";
import { sectionsOf } from "@/lib/schema";
import { FormContext } from "./context";
import { Section } from "./section";

const ALL = () => true;
const EVERYTHING: ReadonlySet<string> = new Set();

/** The form of a chore, from its schema; started, it is a run like every other. */
export function ChoreForm({ chore, initial, start }: { chore: string; initial: Tree; start: string }) {
  const router = useRouter();
  const client = useQueryClient();
  const { data: made, error } = useQuery({ ...trainerConfig(`chores/${chore}`), retry: false });
  const [config, setConfig] = useState<Tree>(initial);
  const defaults = made?.defaults as Tree | undefined;
  const whole = useMemo(() => laidOver(defaults ?? {}, config) as Tree, [defaults, config]);
  const base = useMemo(() => laidOver(defaults ?? {}, initial) as Tree, [defaults, initial]);
  const sections = useMemo(() => (made ? sectionsOf(made.schema as Tree, EVERYTHING) : []), [made]);
  const { verdict, isChecking } = useCheck(`chores/${chore}`, config, made !== undefined);
  const problems = useMemo(() => byPath(verdict?.problems ?? []), [verdict]);
  const set = useCallback(
    (path: readonly string[], value: Json | undefined) =>
      setConfig(
        (old) =>
          (changesFrom(defaults ?? {}, withAt(laidOver(defaults ?? {}, old), path, value)) ?? {}) as Tree,
      ),
    [defaults],
  );
  const run = useMutation({
    mutationFn: () => fetchJson<RunView>(`/api/chores/${chore}/start`, { config }),
    onSuccess: (started) => {
      void client.invalidateQueries({ queryKey: ["runs"] });
      router.push(runHref(started.id));
    },
  });
  const state = useMemo(() => ({ whole, base, problems, candidates: {}, set }), [whole, base, problems, set]);
  if (error) {
    const isMissing = error instanceof Problem && error.status === 404;
    return isMissing ? (
      <Empty title="This studio cannot do that yet">A newer version has a chore called “{chore}”.</Empty>
    ) : (
      <Trouble error={error} />
    );
  }
  if (!made) return <Skeleton className="h-64" />;
  const isWrong = problems.size > 0;
  return (
    <FormContext value={state}>
      <div className="grid gap-3">
        {sections.map((section) => (
          <Section key={section.name} section={section} isShown={ALL} />
        ))}
        {problems.get("")?.map((message) => (
          <p key={message} role="alert" className="text-sm text-madder">
            {message}
          </p>
        ))}
        {run.error && <Trouble error={run.error} />}
        <div className="flex items-center justify-end gap-3">
          <span role="status" className="text-xs text-ink-faint">
            {isChecking ? "Checking …" : isWrong ? "Mend what is marked." : ""}
          </span>
          <Button kind="primary" isBusy={run.isPending} disabled={isWrong} onClick={() => run.mutate()}>
            {start}
          </Button>
        </div>
      </div>
    </FormContext>
  );
}

export interface AskedChore {
  chore: string;
  title: string;
  initial: Tree;
}

export function ChoreDialog({ asked, onClose }: { asked: AskedChore | null; onClose: () => void }) {
  return (
    <Dialog title={asked?.title ?? ""} isOpen={asked !== null} onClose={onClose} width="max-w-2xl">
      {asked && <ChoreForm chore={asked.chore} initial={asked.initial} start="Start" />}
    </Dialog>
  );
}
