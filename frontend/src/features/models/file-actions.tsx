"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useState } from "react";
import { Button, IconButton } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { TrashIcon } from "@/components/ui/icons";
import { useToasts } from "@/components/ui/toasts";
import { api, Problem, unwrap } from "@/lib/api/client";
import type { Model } from "@/lib/api/models";
import { roots } from "@/lib/api/queries";
import { bytes } from "@/lib/format";
import { type FileLocation, locationOf, readLoraSettings } from "@/lib/lora-settings";
import { trainerHref } from "@/lib/trainer-pages";

const FILE = /\.(safetensors|sft|gguf|ckpt|pt|pth|bin)$/i;

function useLocation(model: Model): FileLocation | null {
  const { data } = useQuery(roots);
  const folder = data?.find((root) => root.name === model.root)?.path;
  return folder && FILE.test(model.path) ? locationOf(model, folder) : null;
}

/** Open the training form with the settings of the LoRA. */
export function UseSettingsButton({ model }: { model: Model }) {
  const location = useLocation(model);
  const router = useRouter();
  const { notifyError } = useToasts();
  const open = useMutation({
    mutationFn: async (at: FileLocation) => {
      const settings = await readLoraSettings(at);
      if (!settings) throw new Error(`${model.name} has no training settings in its header.`);
      return trainerHref(settings.trainer, { like: at.path, root: at.root });
    },
    onSuccess: (href) => href && router.push(href),
    onError: notifyError,
  });
  if (!location || !model.adapter) return null;
  return (
    <Button
      size="small"
      aria-label={`Train with the settings of ${model.name}`}
      isBusy={open.isPending}
      onClick={() => open.mutate(location)}
    >
      Use its settings
    </Button>
  );
}

/** True if the studio deletes the file when asked with `force`. */
export const isForceable = (error: unknown): error is Problem =>
  error instanceof Problem && error.code === "needed-to-resume";

function DeleteDialog({
  model,
  location,
  onClose,
}: {
  model: Model;
  location: FileLocation;
  onClose: () => void;
}) {
  const client = useQueryClient();
  const { notify } = useToasts();
  const remove = useMutation({
    mutationFn: (force: boolean) =>
      unwrap(api.DELETE("/api/models/file", { params: { query: { ...location, force } } })),
    onSuccess: () => {
      notify(`${model.name} deleted.`);
      void client.invalidateQueries({ queryKey: ["models"] });
      onClose();
    },
  });
  const conflict = isForceable(remove.error) ? remove.error : null;
  return (
    <div className="grid gap-3 text-sm">
      <p className="text-secondary-foreground">
        This permanently deletes {bytes(model.size)}:{" "}
        <code className="figure text-xs [overflow-wrap:anywhere]">{model.path}</code>
      </p>
      {conflict ? (
        <p role="alert" className="rounded border border-warning bg-warning-subtle px-3 py-2">
          {conflict.detail} They cannot resume without it.
        </p>
      ) : (
        remove.error && <ErrorAlert error={remove.error} />
      )}
      <div className="flex justify-end gap-2">
        <Button onClick={onClose}> Cancel </Button>
        <Button kind="danger" isBusy={remove.isPending} onClick={() => remove.mutate(conflict !== null)}>
          {conflict ? "Delete anyway" : "Delete"}
        </Button>
      </div>
    </div>
  );
}

/** Ask for confirmation, and again if ended runs need the file to resume. */
export function DeleteFile({ model }: { model: Model }) {
  const location = useLocation(model);
  const [isOpen, setOpen] = useState(false);
  if (!location) return null;
  return (
    <>
      <IconButton label={`Delete ${model.name}`} onClick={() => setOpen(true)}>
        <TrashIcon className="size-3.5" />
      </IconButton>
      <Dialog title={`Delete ${model.name}?`} isOpen={isOpen} onClose={() => setOpen(false)} width="max-w-md">
        <DeleteDialog model={model} location={location} onClose={() => setOpen(false)} />
      </Dialog>
    </>
  );
}
