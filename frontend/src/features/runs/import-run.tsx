"use client";
import { useMutation } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { type FormEvent, useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Input, TextArea } from "@/components/ui/inputs";
import { BucketFields } from "@/features/datasets/bucket-fields";
import { runHref } from "@/features/run/run-progress";
import { api, unwrap } from "@/lib/api/client";
import type { Storage } from "@/lib/api/datasets";

const PLACEHOLDER = '{"model": {"path": "/data/chroma.safetensors"}}';

/** A button with a dialog that downloads a mirrored run, which is then listed and resumed like others. */
export function ImportRun() {
  const router = useRouter();
  const [isOpen, setOpen] = useState(false);
  const [url, setUrl] = useState("");
  const [saveAs, setSaveAs] = useState("");
  const [changes, setChanges] = useState("");
  const [storage, setStorage] = useState<Storage>({});
  const start = useMutation({
    mutationFn: () => {
      const config = {
        url: url.trim(),
        save_as: saveAs.trim(),
        storage,
        changes: changes.trim() ? JSON.parse(changes) : {},
      };
      const params = { path: { task: "run-import" } };
      return unwrap(
        api.POST("/api/tasks/{task}/start", { params, body: { config, devices: [], first: false } }),
      );
    },
    onSuccess: (run) => router.push(runHref(run.id)),
  });
  const onSubmit = (event: FormEvent) => {
    event.preventDefault();
    start.mutate();
  };
  const text = (label: string, value: string, set: (value: string) => void, placeholder: string) => (
    <label className="grid gap-1 text-sm font-medium">
      {label}
      <Input
        value={value}
        onChange={(event) => set(event.target.value)}
        placeholder={placeholder}
        autoComplete="off"
      />
    </label>
  );
  return (
    <>
      <Button onClick={() => setOpen(true)}>Resume from a bucket</Button>
      <Dialog title="Resume from a bucket" isOpen={isOpen} onClose={() => setOpen(false)}>
        <form className="grid gap-3" onSubmit={onSubmit}>
          <p className="text-xs text-secondary-foreground">
            A task downloads the run with its newest checkpoint. Then it is listed here, and you can resume
            it.
          </p>
          {text("URL of the run", url, setUrl, "s3://bucket/runs/fox")}
          {text("Name (optional)", saveAs, setSaveAs, "as in the bucket")}
          <label className="grid gap-1 text-sm font-medium">
            Changed settings (optional)
            <TextArea
              value={changes}
              onChange={(event) => setChanges(event.target.value)}
              placeholder={PLACEHOLDER}
              rows={3}
            />
            <span className="text-xs font-normal text-muted-foreground">
              As JSON, such as the paths of models on this machine. Missing files are listed before the
              download.
            </span>
          </label>
          <BucketFields url={url} storage={storage} onChange={setStorage} />
          {start.error && <ErrorAlert error={start.error} />}
          <div className="flex justify-end gap-2">
            <Button onClick={() => setOpen(false)}>Cancel</Button>
            <Button type="submit" kind="primary" isBusy={start.isPending} disabled={!url.includes("://")}>
              Download
            </Button>
          </div>
        </form>
      </Dialog>
    </>
  );
}
