"use client";
import { useQueries } from "@tanstack/react-query";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useRef, useState } from "react";
import { cx } from "@/components/ui/class-names";
import { Skeleton } from "@/components/ui/panel";
import { type DatasetImage, type ImageFilter, imagePage, PAGE } from "@/lib/api/datasets";

const TILE = 148;
const GAP = 8;

/** Images by index, loaded page by page as they become visible. */
export function useImages(name: string, wanted: ImageFilter, pages: number[]) {
  const pageQueries = useQueries({ queries: pages.map((page) => imagePage(name, wanted, page)) });
  const byPage = new Map(pages.map((page, index) => [page, pageQueries[index]]));
  const at = (index: number): DatasetImage | undefined =>
    byPage.get(Math.floor(index / PAGE))?.data?.images[index % PAGE];
  const currentTotal = pageQueries.find((each) => each.data)?.data?.total;
  // Keep the last total while new pages load.
  const last = useRef<{ wanted: ImageFilter; total: number } | null>(null);
  if (currentTotal !== undefined) last.current = { wanted, total: currentTotal };
  const total = currentTotal ?? (last.current?.wanted === wanted ? last.current.total : undefined);
  return { at, total, error: pageQueries.find((each) => each.error)?.error };
}

interface Props {
  total: number;
  selected: number | null;
  at: (index: number) => DatasetImage | undefined;
  onSee: (pages: number[]) => void;
  onChoose: (index: number) => void;
}

/** A virtualized gallery for 100,000 images. */
export function Gallery({ total, selected, at, onSee, onChoose }: Props) {
  const scroller = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(800);
  useEffect(() => {
    const element = scroller.current;
    if (!element) return;
    const observer = new ResizeObserver(() => setWidth(element.clientWidth));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const columns = Math.max(2, Math.floor((width + GAP) / (TILE + GAP)));
  const side = (width - GAP * (columns - 1)) / columns;
  const rows = useVirtualizer({
    count: Math.ceil(total / columns),
    getScrollElement: () => scroller.current,
    estimateSize: () => side + GAP,
    overscan: 3,
  });
  // biome-ignore lint/correctness/useExhaustiveDependencies: rows are measured again when the tile size changes
  useEffect(() => rows.measure(), [side]);
  const items = rows.getVirtualItems();
  const first = items[0]?.index ?? 0;
  const last = items[items.length - 1]?.index ?? 0;
  const from = Math.floor((first * columns) / PAGE);
  const to = Math.floor(Math.max(0, (last + 1) * columns - 1) / PAGE);
  // biome-ignore lint/correctness/useExhaustiveDependencies: scrolls when selected, not later
  useEffect(() => {
    if (selected !== null) rows.scrollToIndex(Math.floor(selected / columns));
  }, [selected]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: depends only on the visible pages
  useEffect(() => onSee(Array.from({ length: to - from + 1 }, (_, index) => from + index)), [from, to]);
  return (
    <div ref={scroller} className="h-[calc(100dvh-15rem)] min-h-96 overflow-y-auto">
      <ul className="relative" style={{ height: rows.getTotalSize() }}>
        {items.flatMap((row) =>
          Array.from({ length: columns }, (_, column) => {
            const index = row.index * columns + column;
            if (index >= total) return null;
            const image = at(index);
            return (
              <li
                key={index}
                className="absolute"
                style={{ top: row.start, left: column * (side + GAP), width: side, height: side }}
              >
                {image ? (
                  <button
                    type="button"
                    aria-pressed={index === selected}
                    onClick={() => onChoose(index)}
                    className={cx(
                      "relative block size-full overflow-hidden rounded border bg-muted",
                      index === selected
                        ? "border-primary ring-2 ring-primary ring-inset"
                        : "hover:border-input",
                    )}
                  >
                    <img
                      src={`${image.url}?size=256`}
                      alt=""
                      loading="lazy"
                      decoding="async"
                      className="size-full object-contain"
                    />
                    <span className="sr-only">{image.file}: </span>
                    <span className="absolute inset-x-0 bottom-0 truncate bg-card/85 px-1.5 py-0.5 text-left text-2xs">
                      {image.problem ? (
                        <span className="text-destructive">{image.problem}</span>
                      ) : (
                        image.caption || <span className="text-warning">no caption</span>
                      )}
                    </span>
                  </button>
                ) : (
                  <Skeleton className="size-full" />
                )}
              </li>
            );
          }),
        )}
      </ul>
    </div>
  );
}
