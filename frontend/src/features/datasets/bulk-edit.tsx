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
  type EditOperation,
  type EditPreview,
  type EditStage,
  editStage,
  edits,
  type ImageFilter,
} from "@/lib/api/datasets";
import { ago, count } from "@/lib/format";
import { OPERATIONS, type OperationKind, operationOf, outcomeText, stageText } from "./caption-operations";

const isCancelled = (error: unknown) => error instanceof Problem && error.code === "edit-cancelled";

/** The requests of the dialog, and the error to show. */
function useBulkEdit(dataset: string, operation: EditOperation, wanted: ImageFilter) {
  const client = useQueryClient();
  const { notify } = useToasts();
  const onError = (error: unknown) => isCancelled(error) && notify("Cancelled. No captions were changed.");
  const preview = useMutation({ mutationFn: () => datasetApi.preview(dataset, operation, wanted) });
  const onSuccess = (edit: Edit) => {
    notify(...outcomeText(edit));
    changed(client, dataset);
  };
  const apply = useMutation({
    mutationFn: (version: string) => datasetApi.edit(dataset, operation, wanted, version),
    onSuccess: (edit) => {
      preview.reset();
      onSuccess(edit);
    },
    onError,
  });
  const undo = useMutation({
    mutationFn: (id: string) => datasetApi.undo(dataset, id),
    onSuccess,
    onError,
  });
  const cancel = useMutation({ mutationFn: () => datasetApi.cancelEdit(dataset) });
  const error = [preview.error, apply.error, undo.error, cancel.error].find(
    (each) => each && !isCancelled(each),
  );
  return { preview, apply, undo, cancel, error };
}

interface OperationDraft {
  kind: OperationKind;
  first: string;
  second: string;
  where: "start" | "end";
}

function OperationFields({
  draft,
  onChange,
}: {
  draft: OperationDraft;
  onChange: (draft: OperationDraft) => void;
}) {
  const { kind, first, second, where } = draft;
  const write = (key: keyof OperationDraft) => (event: { target: { value: string } }) =>
    onChange({ ...draft, [key]: event.target.value });
  const isTags = kind === "add" || kind === "remove";
  return (
    <div className="grid gap-2 sm:grid-cols-[11rem_minmax(0,1fr)]">
      <Select aria-label="Operation" value={kind} onChange={write("kind")}>
        {Object.entries(OPERATIONS).map(([name, label]) => (
          <option key={name} value={name}>
            {label}
          </option>
        ))}
      </Select>
      <Input
        aria-label={isTags ? "Tags, comma-separated" : "Text"}
        placeholder={isTags ? "tags, comma-separated" : kind === "replace" ? "find tag" : "find text"}
        value={first}
        onChange={write("first")}
      />
      {kind === "add" && (
        <Select aria-label="Position" className="sm:col-start-2" value={where} onChange={write("where")}>
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
          onChange={write("second")}
        />
      )}
    </div>
  );
}

function Preview({ preview }: { preview: EditPreview }) {
  return (
    <div className="rounded border">
      <p className="border-b px-3 py-2 text-sm font-medium" role="status">
        {count(preview.num_changed)} of {count(preview.num_matching)} captions would change
      </p>
      <ul className="max-h-64 divide-y overflow-y-auto text-xs">
        {preview.examples.map((each) => (
          <li key={each.item} className="grid gap-0.5 px-3 py-2">
            <span className="text-muted-foreground">{each.item}</span>
            <del className="text-secondary-foreground decoration-destructive">{each.before || "–"}</del>
            <ins className="no-underline">{each.after || "–"}</ins>
          </li>
        ))}
      </ul>
    </div>
  );
}

function EditProgress({
  stage,
  isCancelling,
  onCancel,
}: {
  stage: EditStage;
  isCancelling: boolean;
  onCancel: () => void;
}) {
  return (
    <div className="grid gap-1 text-sm">
      <p className="flex items-center justify-between gap-3">
        <span role="status">{stageText(stage)}</span>
        <Button size="small" isBusy={isCancelling} onClick={onCancel}>
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
  );
}

function History({
  edits,
  isUndoing,
  onUndo,
}: {
  edits: Edit[];
  isUndoing: boolean;
  onUndo: (id: string) => void;
}) {
  return (
    <section className="mt-4 border-t pt-3">
      <h3 className="label mb-1">History</h3>
      <ul className="grid max-h-40 gap-1 overflow-y-auto text-xs">
        {edits.map((edit) => (
          <li key={edit.id} className="flex items-center justify-between gap-3">
            <span className="min-w-0 truncate">
              {edit.title}{" "}
              {!edit.is_whole && <span className="font-medium text-warning">partly applied </span>}
              <span className="text-muted-foreground">
                {count(edit.num_changed)} caption{edit.num_changed === 1 ? "" : "s"}, {ago(edit.time)}
              </span>
            </span>
            <Button size="small" isBusy={isUndoing} onClick={() => onUndo(edit.id)}>
              Undo
            </Button>
          </li>
        ))}
      </ul>
    </section>
  );
}

interface Props {
  dataset: string;
  wanted: ImageFilter;
  total: number;
  isOpen: boolean;
  onClose: () => void;
}

/** Edits many captions at once: preview, apply, undo. */
export function BulkEdit({ dataset, wanted, total, isOpen, onClose }: Props) {
  const [draft, setDraft] = useState<OperationDraft>({ kind: "add", first: "", second: "", where: "start" });
  const { data: history } = useQuery({ ...edits(dataset), enabled: isOpen });
  const { data: stage } = useQuery({ ...editStage(dataset), enabled: isOpen });
  const operation = operationOf(draft.kind, draft.first, draft.second, draft.where);
  const { preview, apply, undo, cancel, error } = useBulkEdit(dataset, operation, wanted);
  const num = preview.data?.num_changed ?? 0;
  return (
    <Dialog title={`Edit ${count(total)} captions`} isOpen={isOpen} onClose={onClose} width="max-w-2xl">
      <form
        className="grid gap-3"
        onSubmit={(event) => {
          event.preventDefault();
          preview.mutate();
        }}
      >
        <OperationFields
          draft={draft}
          onChange={(next) => {
            setDraft(next);
            preview.reset();
          }}
        />
        {error ? <ErrorAlert error={error} /> : null}
        {preview.data && <Preview preview={preview.data} />}
        {stage && (
          <EditProgress stage={stage} isCancelling={cancel.isPending} onCancel={() => cancel.mutate()} />
        )}
        <div className="flex justify-end gap-2">
          <Button type="submit" disabled={!draft.first && draft.kind !== "set"} isBusy={preview.isPending}>
            Preview
          </Button>
          <Button
            kind="primary"
            disabled={num === 0}
            isBusy={apply.isPending}
            onClick={() => preview.data && apply.mutate(preview.data.version)}
          >
            {num ? `Apply to ${count(num)} caption${num > 1 ? "s" : ""}` : "Apply"}
          </Button>
        </div>
      </form>
      {history && history.length > 0 && (
        <History edits={history} isUndoing={undo.isPending} onUndo={(id) => undo.mutate(id)} />
      )}
    </Dialog>
  );
}
