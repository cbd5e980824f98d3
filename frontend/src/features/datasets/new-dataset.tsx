"use client";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Input } from "@/components/ui/inputs";
import { runHref } from "@/features/run/run-progress";
import { datasetApi, datasetHref, type Storage } from "@/lib/api/datasets";
import { BucketFields } from "./bucket-fields";
import { sourceOf } from "./dataset-source";

/** Create a dataset: an empty folder, an existing folder or JSONL, a bucket, or a download. */
export function NewDataset({ isOpen, onClose }: { isOpen: boolean; onClose: () => void }) {
  const router = useRouter();
  const client = useQueryClient();
  const [name, setName] = useState("");
  const [sourceText, setSourceText] = useState("");
  const [storage, setStorage] = useState<Storage>({});
  const source = sourceOf(sourceText);
  const isDownload = source.kind === "web" || source.kind === "hub";
  const make = useMutation({
    /** Returns the page to open. */
    mutationFn: async () => {
      const { kind, ...from } = source;
      if (isDownload) return runHref((await datasetApi.importFrom({ name: name.trim(), ...from })).id);
      const created = await datasetApi.create({
        name: name.trim(),
        ...from,
        ...(kind === "bucket" && { storage }),
      });
      return datasetHref(created.name);
    },
    onSuccess: (href) => {
      void client.invalidateQueries({ queryKey: ["datasets"] });
      router.push(href);
    },
  });
  return (
    <Dialog title="New dataset" isOpen={isOpen} onClose={onClose}>
      <form
        className="grid gap-3"
        onSubmit={(event) => {
          event.preventDefault();
          make.mutate();
        }}
      >
        <label className="grid gap-1 text-sm font-medium">
          Name
          <Input value={name} onChange={(event) => setName(event.target.value)} autoComplete="off" required />
        </label>
        <label className="grid gap-1 text-sm font-medium">
          Source (optional)
          <Input
            value={sourceText}
            onChange={(event) => setSourceText(event.target.value)}
            placeholder="leave empty to upload files"
            autoComplete="off"
          />
          <span className="text-xs font-normal text-muted-foreground">
            A folder or JSONL in one of the studio's folders; a bucket (s3://bucket/folder, gs://, az://); or
            something to download: the URL of a zip, tar or table, or a Hugging Face dataset page.
          </span>
        </label>
        {source.kind === "bucket" && (
          <BucketFields url={source.url} storage={storage} onChange={setStorage} />
        )}
        {isDownload && (
          <p className="text-xs text-secondary-foreground">
            A run downloads {source.kind === "hub" ? `${source.repo} from the Hub` : "it"} and unpacks it.
            Only images, captions and tables are kept; no code is executed.
          </p>
        )}
        {make.error && <ErrorAlert error={make.error} />}
        <div className="flex justify-end gap-2">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" isBusy={make.isPending} disabled={!name.trim()}>
            {isDownload ? "Import" : "Create"}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
