"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Input, Select } from "@/components/ui/inputs";
import { useToasts } from "@/components/ui/toasts";
import { Problem } from "@/lib/api/client";
import {
  changed,
  datasetApi,
  type Edit,
  type EditStage,
  editStage,
  edits,
  type Operation,
  type Wanted,
} from "@/lib/api/datasets";
import { ago, count } from "@/lib/format";

const KINDS = {
  add: "Add tags",
  remove: "Remove tags",
  replace: "Replace a tag",
  replace_text: "Replace text",
  set: "Set the caption",
} as const;
type Kind = keyof typeof KINDS;

const list = (text: string) =>
  text
    .split(",")
    .map((tag) => tag.trim())
    .filter(Boolean);

export function operationOf(kind: Kind, first: string, second: string, where: string): Operation {
  if (kind === "add") return { kind, tags: list(first), where };
  if (kind === "remove") return { kind, tags: list(first) };
  if (kind === "replace") return { kind, tag: first.trim(), by: second.trim() };
  if (kind === "replace_text") return { kind, text: first, by: second };
  return { kind, text: first };
}

/** How far an edit is, in words. */
export function stageWords(stage: EditStage): string {
  if (stage.num_total === 0) return "Scanning the folder …";
  const done = `${count(stage.num_done)} of ${count(stage.num_total)} captions`;
  return stage.phase === "writing" ? `${done} written` : `${done} backed up for undo`;
}

/** What came of an edit, or of an undo; and what is to be known of one that was partly applied. */
export function outcomeWords(edit: Edit): [string, string?] {
  const many = count(edit.num_changed);
  if (!edit.is_whole) return [`Cancelled after changing ${many} captions.`, "Undo restores them."];
  if (edit.undoes) return [`${many} captions restored.`];
  return [`${many} captions changed.`, "You can undo this here."];
}

const isCancelled = (error: unknown) => error instanceof Problem && error.code === "edit-cancelled";

/** Many captions at once: first what it would do, then it is done, and it can be undone. */
export function BulkEdit({
  dataset,
  wanted,
  total,
  isOpen,
  onClose,
}: {
  dataset: string;
  wanted: Wanted;
  total: number;
  isOpen: boolean;
  onClose: () => void;
}) {
  const [kind, setKind] = useState<Kind>("add");
  const [first, setFirst] = useState("");
  const [second, setSecond] = useState("");
  const [where, setWhere] = useState("start");
  const client = useQueryClient();
  const { say } = useToasts();
  const { data: made } = useQuery({ ...edits(dataset), enabled: isOpen });
  const { data: stage } = useQuery({ ...editStage(dataset), enabled: isOpen });
  const operation = operationOf(kind, first, second, where);
  const refresh = () => changed(client, dataset);
  const told = (error: unknown) => isCancelled(error) && say("Cancelled. No captions were changed.");
  const preview = useMutation({ mutationFn: () => datasetApi.preview(dataset, operation, wanted) });
  const doing = useMutation({
    mutationFn: (version: string) => datasetApi.edit(dataset, operation, wanted, version),
    onSuccess: (edit) => {
      say(...outcomeWords(edit));
      preview.reset();
      refresh();
    },
    onError: told,
  });
  const undo = useMutation({
    mutationFn: (id: string) => datasetApi.undo(dataset, id),
    onSuccess: (edit) => {
      say(...outcomeWords(edit));
      refresh();
    },
    onError: told,
  });
  const cancel = useMutation({ mutationFn: () => datasetApi.cancelEdit(dataset) });
  const failed = [preview.error, doing.error, undo.error, cancel.error].find(
    (error) => error && !isCancelled(error),
  );
  const change = (set: (value: string) => void) => (event: { target: { value: string } }) => {
    set(event.target.value);
    preview.reset();
  };
  return (
    <Dialog title={`Edit ${count(total)} captions`} isOpen={isOpen} onClose={onClose} width="max-w-2xl">
      <form
        className="grid gap-3"
        onSubmit={(event) => {
          event.preventDefault();
          preview.mutate();
        }}
      >
        <div className="grid gap-2 sm:grid-cols-[11rem_minmax(0,1fr)]">
          <Select
            aria-label="Operation"
            value={kind}
            onChange={(event) => {
              setKind(event.target.value as Kind);
              preview.reset();
            }}
          >
            {Object.entries(KINDS).map(([name, label]) => (
              <option key={name} value={name}>
                {label}
              </option>
            ))}
          </Select>
          <Input
            aria-label={kind === "add" || kind === "remove" ? "Tags, comma-separated" : "Text"}
            placeholder={
              kind === "add" || kind === "remove"
                ? "tags, comma-separated"
                : kind === "replace"
                  ? "find tag"
                  : "find text"
            }
            value={first}
            onChange={change(setFirst)}
          />
          {kind === "add" && (
            <Select
              aria-label="Position"
              className="sm:col-start-2"
              value={where}
              onChange={change(setWhere)}
            >
              <option value="start">at the start</option>
              <option value="end">at the end</option>
            </Select>
          )}
          {(kind === "replace" || kind === "replace_text") && (
            <Input
              aria-label="Replace with"
              className="sm:col-start-2"
              placeholder="replace with"
              value={second}
              onChange={change(setSecond)}
            />
          )}
        </div>
        {failed ? <ErrorAlert error={failed} /> : null}
        {preview.data && (
          <div className="rounded border">
            <p className="border-b px-3 py-2 text-sm font-medium" role="status">
              {count(preview.data.num_changed)} of {count(preview.data.num_meant)} captions would change
            </p>
            <ul className="max-h-64 divide-y overflow-y-auto text-xs">
              {preview.data.examples.map((each) => (
                <li key={each.item} className="grid gap-0.5 px-3 py-2">
                  <span className="text-muted-foreground">{each.item}</span>
                  <del className="text-secondary-foreground decoration-destructive">{each.before || "–"}</del>
                  <ins className="no-underline">{each.after || "–"}</ins>
                </li>
              ))}
            </ul>
          </div>
        )}
        {stage && (
          <div className="grid gap-1 text-sm">
            <p className="flex items-center justify-between gap-3">
              <span role="status">{stageWords(stage)}</span>
              <Button size="small" isBusy={cancel.isPending} onClick={() => cancel.mutate()}>
                Cancel edit
              </Button>
            </p>
            <progress
              className="h-1.5 w-full"
              aria-label={stage.title}
              value={stage.num_total ? stage.num_done : undefined}
              max={stage.num_total || undefined}
            />
          </div>
        )}
        <div className="flex justify-end gap-2">
          <Button type="submit" disabled={!first && kind !== "set"} isBusy={preview.isPending}>
            Preview
          </Button>
          <Button
            kind="primary"
            disabled={!preview.data || preview.data.num_changed === 0}
            isBusy={doing.isPending}
            onClick={() => preview.data && doing.mutate(preview.data.version)}
          >
            {preview.data?.num_changed
              ? `Apply to ${count(preview.data.num_changed)} caption${preview.data.num_changed > 1 ? "s" : ""}`
              : "Apply"}
          </Button>
        </div>
      </form>
      {made && made.length > 0 && (
        <section className="mt-4 border-t pt-3">
          <h3 className="label mb-1">History</h3>
          <ul className="grid max-h-40 gap-1 overflow-y-auto text-xs">
            {made.map((edit) => (
              <li key={edit.id} className="flex items-center justify-between gap-3">
                <span className="min-w-0 truncate">
                  {edit.title}{" "}
                  {!edit.is_whole && <span className="font-medium text-warning">cancelled half-way </span>}
                  <span className="text-muted-foreground">
                    {count(edit.num_changed)} caption{edit.num_changed === 1 ? "" : "s"}, {ago(edit.time)}
                  </span>
                </span>
                <Button size="small" isBusy={undo.isPending} onClick={() => undo.mutate(edit.id)}>
                  Undo
                </Button>
              </li>
            ))}
          </ul>
        </section>
      )}
    </Dialog>
  );
}
