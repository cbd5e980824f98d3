"use client";
import { useQueryClient } from "@tanstack/react-query";
import { useRef, useState } from "react";
import { Button } from "@/components/ui/button";
import { cx } from "@/components/ui/classes";
import { UploadIcon } from "@/components/ui/icons";
import { Meter } from "@/components/ui/surface";
import { bytes, count } from "@/lib/format";
import { filesOf, type Item, itemOf, uploadAll } from "@/lib/upload";

/** A place to drop pictures, folders and zips on; it goes on where a broken connection left off. */
export function Uploader({ dataset }: { dataset: string }) {
  const [items, setItems] = useState<Item[]>([]);
  const [isOver, setOver] = useState(false);
  const [, setTick] = useState(0);
  const abort = useRef<AbortController | null>(null);
  const input = useRef<HTMLInputElement>(null);
  const client = useQueryClient();
  const isBusy = items.some((item) => item.state === "sending" || item.state === "waiting");

  const take = async (fresh: Item[]) => {
    if (fresh.length === 0) return;
    setItems((old) => [...old.filter((item) => item.state !== "done"), ...fresh]);
    abort.current = new AbortController();
    await uploadAll(dataset, fresh, () => setTick((n) => n + 1), abort.current.signal);
    void client.invalidateQueries({ queryKey: ["dataset", dataset] });
  };
  const total = items.reduce((sum, item) => sum + item.file.size, 0);
  const sent = items.reduce((sum, item) => sum + item.sent, 0);
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
        void filesOf(event.dataTransfer).then(take);
      }}
      className={cx(
        "mb-4 rounded-lg border border-dashed px-4 py-2.5",
        isOver ? "border-indigo bg-indigo-soft" : "border-line-strong",
      )}
    >
      <div className="flex flex-wrap items-center justify-between gap-3">
        <p className="text-sm text-ink-soft">Drop pictures, folders or zips here, with their captions.</p>
        <input
          ref={input}
          type="file"
          multiple
          tabIndex={-1}
          className="sr-only"
          aria-label="Files to upload"
          onChange={(event) => {
            void take([...(event.target.files ?? [])].map((file) => itemOf(file, file.name)));
            event.target.value = "";
          }}
        />
        <Button size="small" onClick={() => input.current?.click()}>
          <UploadIcon className="size-3.5" /> Choose files
        </Button>
      </div>
      {items.length > 0 && (
        <div className="mt-3 grid gap-1.5" role="status">
          <div className="flex items-center justify-between gap-3 text-xs text-ink-soft">
            <span>
              {count(done)} of {count(items.length)} files, {bytes(sent)} of {bytes(total)}
            </span>
            {isBusy && (
              <Button size="small" kind="quiet" onClick={() => abort.current?.abort()}>
                Pause
              </Button>
            )}
          </div>
          <Meter
            value={total ? sent / total : 0}
            label="Upload"
            tone={failed.length > 0 ? "madder" : isBusy ? "indigo" : "nettle"}
          />
          {failed.map((item) => (
            <p key={item.path} className="text-xs text-madder">
              {item.path}: {item.error}
            </p>
          ))}
        </div>
      )}
    </div>
  );
}
