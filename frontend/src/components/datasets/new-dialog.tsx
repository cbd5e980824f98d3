"use client";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { Input } from "@/components/ui/inputs";
import { Trouble } from "@/components/ui/trouble";
import { datasetApi, datasetHref, type Storage } from "@/lib/api/datasets";
import { BucketFields } from "./bucket-fields";

/** A data set: a new folder to upload to, one that lies here already, or a bucket. */
export function NewDialog({ isOpen, onClose }: { isOpen: boolean; onClose: () => void }) {
  const router = useRouter();
  const client = useQueryClient();
  const [name, setName] = useState("");
  const [where, setWhere] = useState("");
  const [storage, setStorage] = useState<Storage>({});
  const place = where.trim();
  const isBucket = place.includes("://");
  const make = useMutation({
    mutationFn: () => {
      const from = place === "" ? {} : isBucket ? { url: place, storage } : { path: place };
      return datasetApi.create({ name: name.trim(), ...from });
    },
    onSuccess: (made) => {
      void client.invalidateQueries({ queryKey: ["datasets"] });
      router.push(datasetHref(made.name));
    },
  });
  return (
    <Dialog title="New data set" isOpen={isOpen} onClose={onClose}>
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
          Where it lies already
          <Input
            value={where}
            onChange={(event) => setWhere(event.target.value)}
            placeholder="none: a new folder, to upload to"
            autoComplete="off"
          />
          <span className="text-xs font-normal text-ink-faint">
            A folder or JSONL in one of the studio's folders, or a bucket: s3://bucket/folder, gs://, az://.
          </span>
        </label>
        {isBucket && <BucketFields url={place} storage={storage} onChange={setStorage} />}
        {make.error && <Trouble error={make.error} />}
        <div className="flex justify-end gap-2">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" isBusy={make.isPending} disabled={!name.trim()}>
            Make it
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
