"use client";
import { useMutation } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { TextArea } from "@/components/ui/inputs";
import { api, type RunView, unwrap } from "@/lib/api/client";
import { nameProblem } from "@/lib/run-name";
import { RunNameField } from "./run-name-field";
import { runHref } from "./run-progress";

/** Create a run with this run's configuration and some changes. */
export function DuplicateDialog({
  run,
  isOpen,
  onClose,
}: {
  run: RunView;
  isOpen: boolean;
  onClose: () => void;
}) {
  const router = useRouter();
  const [name, setName] = useState("");
  const [changes, setChanges] = useState("");
  const duplicate = useMutation({
    mutationFn: () =>
      unwrap(
        api.POST("/api/runs/{run_id}/duplicate", {
          params: { path: { run_id: run.id } },
          body: { name: name.trim() || null, changes: changes.trim() ? JSON.parse(changes) : {} },
        }),
      ),
    onSuccess: (created) => {
      onClose();
      router.push(runHref(created.id));
    },
  });
  return (
    <Dialog title={`Duplicate ${run.id}`} isOpen={isOpen} onClose={onClose}>
      <form
        className="grid gap-3 text-sm"
        onSubmit={(event) => {
          event.preventDefault();
          duplicate.mutate();
        }}
      >
        <RunNameField label="Name" value={name} onChange={setName} />
        <label className="grid gap-1 font-medium">
          Changes (JSON)
          <TextArea
            rows={4}
            className="figure"
            value={changes}
            onChange={(event) => setChanges(event.target.value)}
            placeholder={'{"training": {"lr": 5e-5}}'}
          />
        </label>
        {duplicate.error && <ErrorAlert error={duplicate.error} />}
        <div className="flex justify-end gap-2">
          <Button onClick={onClose}>Cancel</Button>
          <Button
            type="submit"
            kind="primary"
            isBusy={duplicate.isPending}
            disabled={nameProblem(name) !== null}
          >
            {" "}
            Add to queue{" "}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
