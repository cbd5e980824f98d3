"use client";
import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { Button } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { UploadIcon } from "@/components/ui/icons";
import { Meter } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { changed } from "@/lib/api/datasets";
import { bytes, count } from "@/lib/format";
import { belowTop, filesOf, type Item, itemOf, newOf, uploadAll } from "@/lib/upload";

const SHOWN_EVERY_MS = 200;
const MOST_TOLD = 5;

/** A place to drop pictures, folders and zips on; it goes on where a broken connection left off. */
export function Uploader({ dataset }: { dataset: string }) {
  const [items, setItems] = useState<Item[]>([]);
  const [isOver, setOver] = useState(false);
  const [numUnderWay, setUnderWay] = useState(0);
  const [, setTick] = useState(0);
  const abort = useRef(new AbortController());
  const tick = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const input = useRef<HTMLInputElement>(null);
  const folder = useRef<HTMLInputElement>(null);
  const client = useQueryClient();
  const { complain, say } = useToasts();
  const isBusy = numUnderWay > 0;

  // Parts come by the dozen a second; a list of thousands is not counted for each.
  const onChange = () => {
    tick.current ??= setTimeout(() => {
      tick.current = undefined;
      setTick((n) => n + 1);
    }, SHOWN_EVERY_MS);
  };
  useEffect(() => {
    if (!isBusy) return;
    const ask = (event: BeforeUnloadEvent) => event.preventDefault();
    window.addEventListener("beforeunload", ask);
    return () => window.removeEventListener("beforeunload", ask);
  }, [isBusy]);

  const upload = async (todo: Item[]) => {
    if (abort.current.signal.aborted) abort.current = new AbortController();
    setUnderWay((n) => n + 1);
    await uploadAll(dataset, todo, onChange, abort.current.signal);
    setUnderWay((n) => n - 1);
    changed(client, dataset);
  };
  const take = (found: Item[]) => {
    if (found.length === 0) {
      say("No files to upload.", "Choose images, captions (.txt, .caption), JSONL, CSV or zip files.");
      return;
    }
    const fresh = newOf(items, found, isBusy);
    const paths = new Set(fresh.map((item) => item.path));
    const isOver = (item: Item) => item.state === "done" || item.state === "skipped";
    setItems([...items.filter((item) => !isOver(item) && !paths.has(item.path)), ...fresh]);
    if (fresh.length > 0) void upload(fresh);
  };
  const left = items.filter((item) => item.state === "waiting" || item.state === "failed");
  const skipped = items.filter((item) => item.state === "skipped");
  const wanted = items.filter((item) => item.state !== "skipped");
  const total = wanted.reduce((sum, item) => sum + item.file.size, 0);
  const sent = wanted.reduce((sum, item) => sum + item.sent, 0);
  const done = items.filter((item) => item.state === "done").length;
  const failed = items.filter((item) => item.state === "failed");
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: the button in it does the same
    <div
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        filesOf(event.dataTransfer).then(take).catch(complain);
      }}
      className={cx(
        "mb-4 rounded-lg border border-dashed px-4 py-2.5",
        isOver ? "border-primary bg-accent" : "border-input",
      )}
    >
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
            take([...(event.target.files ?? [])].map((file) => itemOf(file, file.name)));
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
            take([...(event.target.files ?? [])].map((file) => itemOf(file, belowTop(file))));
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
      {items.length > 0 && (
        <div className="mt-3 grid gap-1.5">
          <div className="flex items-center justify-between gap-3 text-xs text-secondary-foreground">
            <span>
              {count(done)} of {count(wanted.length)} files, {bytes(sent)} of {bytes(total)}
            </span>
            {isBusy ? (
              <Button size="small" kind="quiet" onClick={() => abort.current.abort()}>
                Pause
              </Button>
            ) : (
              left.length > 0 && (
                <Button size="small" onClick={() => void upload(left)}>
                  {failed.length > 0 ? "Retry" : "Continue with"} {count(left.length)} file
                  {left.length === 1 ? "" : "s"}
                </Button>
              )
            )}
          </div>
          <Meter
            value={total ? sent / total : 1}
            label="Upload"
            tone={failed.length > 0 ? "destructive" : left.length > 0 || isBusy ? "primary" : "success"}
          />
          <div role="status">
            {!isBusy && <p className="sr-only">{count(done)} files uploaded.</p>}
            {failed.slice(0, MOST_TOLD).map((item) => (
              <p key={item.path} className="text-xs text-destructive">
                {item.path}: {item.error}
              </p>
            ))}
            {failed.length > MOST_TOLD && (
              <p className="text-xs text-destructive">and {count(failed.length - MOST_TOLD)} more</p>
            )}
            {skipped.length > 0 && (
              <p className="text-xs text-secondary-foreground">
                {count(skipped.length)} file{skipped.length === 1 ? "" : "s"} skipped (not images or
                captions):{" "}
                {skipped
                  .slice(0, MOST_TOLD)
                  .map((item) => item.path)
                  .join(", ")}
                {skipped.length > MOST_TOLD && " …"}
              </p>
            )}
          </div>
        </div>
      )}
    </div>
  );
}
