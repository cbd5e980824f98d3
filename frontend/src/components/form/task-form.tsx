"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useCallback, useMemo, useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { ChevronIcon } from "@/components/ui/icons";
import { Empty, Skeleton } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { runHref } from "@/features/run/run-progress";
import { byPath, type Problems, useValidation } from "@/hooks/use-validation";
import { Problem, startTask } from "@/lib/api/client";
import { taskConfig } from "@/lib/api/queries";
import { type Field, leavesOf, sectionsOf } from "@/lib/form-fields";
import { changesFrom, type Json, laidOver, type Tree, withAt } from "@/lib/json";
import { FormContext } from "./form-context";
import { FormSection } from "./form-section";

/** The form of a task, built from its schema. Starting it creates a run. */
export function TaskForm({
  task,
  initial,
  start,
  stay = false,
  first,
}: {
  task: string;
  initial: Tree;
  start: string;
  /** Keep the form open after a start. */
  stay?: boolean;
  /** Fields to show first, in this order; the others are folded. */
  first?: string[];
}) {
  const router = useRouter();
  const client = useQueryClient();
  const { notify } = useToasts();
  const { data: form, error } = useQuery({ ...taskConfig(task), retry: false });
  const [config, setConfig] = useState<Tree>(initial);
  const defaults = form?.defaults as Tree | undefined;
  const whole = useMemo(() => laidOver(defaults ?? {}, config) as Tree, [defaults, config]);
  const base = useMemo(() => laidOver(defaults ?? {}, initial) as Tree, [defaults, initial]);
  const sections = useMemo(() => (form ? sectionsOf(form.schema as Tree) : []), [form]);
  const { verdict, isChecking } = useValidation({ task }, config, form !== undefined);
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
    mutationFn: () => startTask(task, config),
    onSuccess: (started) => {
      void client.invalidateQueries({ queryKey: ["runs"] });
      if (stay) notify(`${started.id} is queued.`);
      else router.push(runHref(started.id));
    },
  });
  const state = useMemo(() => ({ whole, base, problems, candidates: {}, set }), [whole, base, problems, set]);
  if (error) {
    const isMissing = error instanceof Problem && error.status === 404;
    return isMissing ? (
      <Empty title="Task not available">Update the studio to use the task “{task}”.</Empty>
    ) : (
      <ErrorAlert error={error} />
    );
  }
  if (!form) return <Skeleton className="h-64" />;
  const isWrong = problems.size > 0;
  return (
    <FormContext value={state}>
      <div className="grid gap-3">
        {first ? (
          <Folded sections={sections} first={first} problems={problems} />
        ) : (
          sections.map((section) => <FormSection key={section.name} section={section} isShown={() => true} />)
        )}
        {problems.get("")?.map(({ text }) => (
          <p key={text} role="alert" className="text-sm text-destructive">
            {text}
          </p>
        ))}
        {run.error && <ErrorAlert error={run.error} />}
        <div className="flex items-center justify-end gap-3">
          <span role="status" className="text-xs text-muted-foreground">
            {isChecking ? "Checking …" : isWrong ? "Fix the highlighted fields." : ""}
          </span>
          <Button kind="primary" isBusy={run.isPending} disabled={isWrong} onClick={() => run.mutate()}>
            {start}
          </Button>
        </div>
      </div>
    </FormContext>
  );
}

/** The first fields in their order, the others below a fold, which opens if one of them has a problem. */
function Folded({ sections, first, problems }: { sections: Field[]; first: string[]; problems: Problems }) {
  const loose = sections.find((section) => section.path.length === 0);
  const byName = new Map([...(loose?.fields ?? []), ...sections].map((field) => [field.name, field]));
  const top = first.flatMap((name) => byName.get(name) ?? []);
  const isTop = (field: Field) =>
    top.some((each) => each.name === field.name && each.path.length === field.path.length);
  const rest = sections.flatMap((section) => {
    if (section.path.length > 0) return isTop(section) ? [] : [section];
    const fields = section.fields.filter((field) => !isTop(field));
    return fields.length > 0 ? [{ ...section, fields }] : [];
  });
  const isWrong = rest.flatMap(leavesOf).some((field) => problems.has(field.path.join(".")));
  const plain = top.filter((field) => !["group", "items", "variants"].includes(field.kind));
  const nested = top.filter((field) => !plain.includes(field));
  return (
    <>
      {loose && (
        <FormSection
          section={{ ...loose, name: "first", title: "Image settings", fields: plain }}
          isShown={() => true}
        />
      )}
      {nested.map((section) => (
        <FormSection key={section.name} section={section} isShown={() => true} />
      ))}
      <details open={isWrong || undefined} className="group">
        <summary className="flex h-9 cursor-pointer items-center gap-2 rounded px-2 text-sm font-medium text-secondary-foreground hover:bg-muted">
          <ChevronIcon className="size-3.5 transition-transform group-open:rotate-90" />
          More settings
        </summary>
        <div className="mt-2 grid gap-3">
          {rest.map((section) => (
            <FormSection key={section.name} section={section} isShown={() => true} />
          ))}
        </div>
      </details>
    </>
  );
}

export interface TaskRequest {
  task: string;
  title: string;
  initial: Tree;
}

export function TaskDialog({ request, onClose }: { request: TaskRequest | null; onClose: () => void }) {
  return (
    <Dialog title={request?.title ?? ""} isOpen={request !== null} onClose={onClose} width="max-w-2xl">
      {request && <TaskForm task={request.task} initial={request.initial} start="Start" />}
    </Dialog>
  );
}
