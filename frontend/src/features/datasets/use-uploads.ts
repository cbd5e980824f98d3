"use client";
import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { useToasts } from "@/components/ui/toasts";
import { changed } from "@/lib/api/datasets";
import { type Item, newOf, uploadAll } from "@/lib/upload";

const REFRESH_MS = 200;

/** The files being uploaded to a dataset. Leaving the page during an upload asks for confirmation. */
export function useUploads(dataset: string) {
  const [items, setItems] = useState<Item[]>([]);
  const [numActive, setNumActive] = useState(0);
  const [, setTick] = useState(0);
  const abort = useRef(new AbortController());
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const client = useQueryClient();
  const { notify } = useToasts();
  const isBusy = numActive > 0;

  // Parts arrive by the dozen each second; rendering for each would count thousands of files again.
  const onChange = () => {
    timer.current ??= setTimeout(() => {
      timer.current = undefined;
      setTick((n) => n + 1);
    }, REFRESH_MS);
  };
  useEffect(() => {
    if (!isBusy) return;
    const confirmLeaving = (event: BeforeUnloadEvent) => event.preventDefault();
    window.addEventListener("beforeunload", confirmLeaving);
    return () => window.removeEventListener("beforeunload", confirmLeaving);
  }, [isBusy]);

  const upload = async (files: Item[]) => {
    if (abort.current.signal.aborted) abort.current = new AbortController();
    setNumActive((n) => n + 1);
    await uploadAll(dataset, files, onChange, abort.current.signal);
    setNumActive((n) => n - 1);
    changed(client, dataset);
  };
  const add = (files: Item[]) => {
    if (files.length === 0) {
      notify("No files to upload.", "Choose images, captions (.txt, .caption), JSONL, CSV or zip files.");
      return;
    }
    const fresh = newOf(items, files, isBusy);
    const paths = new Set(fresh.map((item) => item.path));
    const isOver = (item: Item) => item.state === "done" || item.state === "skipped";
    setItems([...items.filter((item) => !isOver(item) && !paths.has(item.path)), ...fresh]);
    if (fresh.length > 0) void upload(fresh);
  };
  return {
    items,
    isBusy,
    add,
    upload: (files: Item[]) => void upload(files),
    pause: () => abort.current.abort(),
  };
}
