"use client";
import { useCallback, useMemo, useState } from "react";
import { useDebounced } from "@/hooks/use-validation";
import { type DatasetImage, type ImageFilter, PAGE } from "@/lib/api/datasets";
import { nextIndex } from "@/lib/caption-saver";
import { useImages } from "./gallery";

export type Show = "all" | "uncaptioned" | "problems";

/** The filters, the loaded pages and the selected image of a dataset's page. */
export function useDatasetView(name: string) {
  const [search, setSearch] = useState("");
  const [show, setShow] = useState<Show>("all");
  const [tags, setTags] = useState<string[]>([]);
  const [selected, setSelected] = useState<number | null>(null);
  // The image being edited stays in the editor, even when its new caption takes it out of the list.
  const [held, setHeld] = useState<DatasetImage | null>(null);
  const [pages, setPages] = useState([0]);
  const text = useDebounced(search);
  const wanted = useMemo<ImageFilter>(
    () => ({
      ...(text && { text }),
      ...(tags.length > 0 && { tags }),
      ...(show === "uncaptioned" && { has_caption: false }),
      ...(show === "problems" && { has_problem: true }),
    }),
    [text, tags, show],
  );
  const selectedPage = Math.floor((selected ?? 0) / PAGE);
  const loaded = selected === null || pages.includes(selectedPage) ? pages : [...pages, selectedPage];
  const { at, total, error } = useImages(name, wanted, loaded);
  const current = selected === null ? undefined : at(selected);
  // Keep the newest version, so that the editor never takes an older caption for a change by someone else.
  if (current && current !== held && (held === null || held.item === current.item)) setHeld(current);
  const isInList = held === null || current?.item === held.item;

  const select = useCallback((index: number | null) => {
    setSelected(index);
    setHeld(null);
  }, []);
  const restart = useCallback(() => {
    select(null);
    setPages([0]);
  }, [select]);
  const toggleTag = useCallback(
    (tag: string) => {
      setTags((old) => (old.includes(tag) ? old.filter((each) => each !== tag) : [...old, tag]));
      restart();
    },
    [restart],
  );
  const move = useCallback(
    (by: number) => {
      if (selected === null || !total) return;
      const next = nextIndex(selected, isInList, by, total);
      if (next !== selected || !isInList) select(next);
    },
    [selected, isInList, total, select],
  );
  const close = useCallback(() => select(null), [select]);
  const load = useCallback((next: number[]) => setPages(next.length > 0 ? next : [0]), []);
  const filter = (next: { show?: Show; search?: string }) => {
    if (next.show) setShow(next.show);
    if (next.search !== undefined) setSearch(next.search);
    restart();
  };
  const image = selected === null ? undefined : (isInList && current) || held || undefined;
  return {
    search,
    show,
    wanted,
    selected,
    image,
    isInList,
    at,
    total,
    error,
    select,
    close,
    move,
    load,
    filter,
    toggleTag,
  };
}
