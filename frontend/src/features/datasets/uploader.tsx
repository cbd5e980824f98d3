"use client";
import { useRef } from "react";
import { Button } from "@/components/ui/button";
import { DropZone } from "@/components/ui/drop-zone";
import { UploadIcon } from "@/components/ui/icons";
import { Meter } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { bytes, count } from "@/lib/format";
import { belowTop, filesOf, type Item, itemOf } from "@/lib/upload";
import { useUploads } from "./use-uploads";

const MAX_LISTED = 5;
const plural = (num: number) => (num === 1 ? "" : "s");

/** Failed and skipped files by name. */
function Outcome({ failed, skipped, summary }: { failed: Item[]; skipped: Item[]; summary: string | null }) {
  return (
    <div role="status">
      {summary && <p className="sr-only">{summary}</p>}
      {failed.slice(0, MAX_LISTED).map((item) => (
        <p key={item.path} className="text-xs text-destructive">
          {item.path}: {item.error}
        </p>
      ))}
      {failed.length > MAX_LISTED && (
        <p className="text-xs text-destructive">and {count(failed.length - MAX_LISTED)} more</p>
      )}
      {skipped.length > 0 && (
        <p className="text-xs text-secondary-foreground">
          {count(skipped.length)} file{plural(skipped.length)} skipped (not images or captions):{" "}
          {skipped
            .slice(0, MAX_LISTED)
            .map((item) => item.path)
            .join(", ")}
          {skipped.length > MAX_LISTED && " …"}
        </p>
      )}
    </div>
  );
}

function UploadProgress({
  items,
  isBusy,
  onPause,
  onRetry,
}: {
  items: Item[];
  isBusy: boolean;
  onPause: () => void;
  onRetry: (items: Item[]) => void;
}) {
  const left = items.filter((item) => item.state === "waiting" || item.state === "failed");
  const failed = items.filter((item) => item.state === "failed");
  const skipped = items.filter((item) => item.state === "skipped");
  const wanted = items.filter((item) => item.state !== "skipped");
  const total = wanted.reduce((sum, item) => sum + item.file.size, 0);
  const sent = wanted.reduce((sum, item) => sum + item.sent, 0);
  const numDone = items.filter((item) => item.state === "done").length;
  return (
    <div className="mt-3 grid gap-1.5">
      <div className="flex items-center justify-between gap-3 text-xs text-secondary-foreground">
        <span>
          {count(numDone)} of {count(wanted.length)} files, {bytes(sent)} of {bytes(total)}
        </span>
        {isBusy ? (
          <Button size="small" kind="quiet" onClick={onPause}>
            Pause
          </Button>
        ) : (
          left.length > 0 && (
            <Button size="small" onClick={() => onRetry(left)}>
              {failed.length > 0 ? "Retry" : "Continue with"} {count(left.length)} file{plural(left.length)}
            </Button>
          )
        )}
      </div>
      <Meter
        value={total ? sent / total : 1}
        label="Upload"
        tone={failed.length > 0 ? "destructive" : left.length > 0 || isBusy ? "primary" : "success"}
      />
      <Outcome
        failed={failed}
        skipped={skipped}
        summary={isBusy ? null : `${count(numDone)} files uploaded.`}
      />
    </div>
  );
}

/** A drop zone for images, folders and zip files. An interrupted upload continues from its last part. */
export function Uploader({ dataset }: { dataset: string }) {
  const { items, isBusy, add, upload, pause } = useUploads(dataset);
  const input = useRef<HTMLInputElement>(null);
  const folder = useRef<HTMLInputElement>(null);
  const { notifyError } = useToasts();
  return (
    <DropZone className="mb-4" onDrop={(transfer) => void filesOf(transfer).then(add).catch(notifyError)}>
      <div className="flex flex-wrap items-center justify-between gap-3">
        <p className="text-sm text-secondary-foreground">
          Drop images, folders or zip files here, with their captions.
        </p>
        <input
          ref={input}
          type="file"
          multiple
          tabIndex={-1}
          className="sr-only"
          aria-label="Files to upload"
          onChange={(event) => {
            add([...(event.target.files ?? [])].map((file) => itemOf(file, file.name)));
            event.target.value = "";
          }}
        />
        <input
          ref={(element) => {
            folder.current = element;
            element?.setAttribute("webkitdirectory", "");
          }}
          type="file"
          multiple
          tabIndex={-1}
          className="sr-only"
          aria-label="Folder to upload"
          onChange={(event) => {
            add([...(event.target.files ?? [])].map((file) => itemOf(file, belowTop(file))));
            event.target.value = "";
          }}
        />
        <span className="flex flex-wrap gap-2">
          <Button size="small" onClick={() => input.current?.click()}>
            <UploadIcon className="size-3.5" /> Choose files
          </Button>
          <Button size="small" onClick={() => folder.current?.click()}>
            Choose a folder
          </Button>
        </span>
      </div>
      {items.length > 0 && <UploadProgress items={items} isBusy={isBusy} onPause={pause} onRetry={upload} />}
    </DropZone>
  );
}
