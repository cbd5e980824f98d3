"use client";
import { useQueries, useQuery } from "@tanstack/react-query";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useMemo, useRef, useState } from "react";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Empty, Panel, Skeleton } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { samples } from "@/lib/api/queries";
import { count } from "@/lib/format";
import { gridOf, mergeGrids, promptAt, type SampleGrid } from "@/lib/sample-grid";
import { Lightbox } from "./lightbox";
import { ClipMark } from "./sample-media";

const SIZES = [
  { value: 96, label: "S" },
  { value: 144, label: "M" },
  { value: 224, label: "L" },
];
const LABEL = { wide: 192, narrow: 104 };

interface Cell {
  row: number;
  column: number;
}

function Grid({ grid, size, onOpen }: { grid: SampleGrid; size: number; onOpen: (cell: Cell) => void }) {
  const scroller = useRef<HTMLDivElement>(null);
  const [label, setLabel] = useState(LABEL.wide);
  useEffect(() => setLabel(window.innerWidth < 640 ? LABEL.narrow : LABEL.wide), []);
  const columns = useVirtualizer({
    horizontal: true,
    count: grid.steps.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => size + 6,
    overscan: 4,
  });
  const num = grid.steps.length;
  // biome-ignore lint/correctness/useExhaustiveDependencies: scrolls to the newest step when one is added
  useEffect(() => columns.scrollToIndex(num - 1), [num, size]);
  return (
    <div ref={scroller} className="overflow-x-auto pb-4">
      <div className="relative" style={{ width: columns.getTotalSize() + label }}>
        <div className="relative h-7">
          <span className="sticky left-0 z-10 block h-full bg-card" style={{ width: label }} />
          {columns.getVirtualItems().map((item) => (
            <span
              key={item.key}
              className="figure absolute top-1.5 text-2xs text-muted-foreground"
              style={{ left: item.start + label, width: size }}
            >
              {count(grid.steps[item.index])}
            </span>
          ))}
        </div>
        {grid.rows.map((row, index) => (
          <div key={row.key} className="relative mb-1.5" style={{ height: size }}>
            <p
              className="sticky left-0 z-10 line-clamp-4 h-full bg-card pr-3 pl-4 text-xs leading-5 text-secondary-foreground"
              style={{ width: label }}
              title={[row.run, row.prompt].filter(Boolean).join(": ")}
            >
              {row.run && <span className="block truncate font-medium text-foreground">{row.run}</span>}
              {row.prompt}
            </p>
            {columns.getVirtualItems().map((item) => {
              const step = grid.steps[item.index] ?? 0;
              const sample = row.byStep.get(step);
              return (
                <div
                  key={item.key}
                  className="absolute top-0"
                  style={{ left: item.start + label, width: size, height: size }}
                >
                  {sample ? (
                    <button
                      type="button"
                      className="relative block size-full cursor-zoom-in overflow-hidden rounded border bg-muted"
                      onClick={() => onOpen({ row: index, column: item.index })}
                      aria-label={[row.run, promptAt(row, step), `step ${step}`].filter(Boolean).join(", ")}
                      title={promptAt(row, step)}
                    >
                      <img
                        src={`${sample.url}?size=${size > 128 ? 512 : 256}`}
                        alt=""
                        loading="lazy"
                        decoding="async"
                        width={size}
                        height={size}
                        className="size-full object-contain"
                      />
                      <ClipMark sample={sample} />
                    </button>
                  ) : (
                    <div className="weave size-full rounded opacity-40" />
                  )}
                </div>
              );
            })}
          </div>
        ))}
      </div>
    </div>
  );
}

/** The samples: a row per prompt, a column per step. */
export function Samples({ id, isActive, others }: { id: string; isActive: boolean; others: string[] }) {
  const { data, error, refetch } = useQuery({ ...samples(id), refetchInterval: isActive ? 15_000 : false });
  const [size, setSize] = useState(144);
  const [cell, setCell] = useState<Cell | null>(null);
  const otherSamples = useQueries({ queries: others.map((other) => samples(other)) });
  const key = otherSamples.map((each) => `${each.dataUpdatedAt}`).join();
  // biome-ignore lint/correctness/useExhaustiveDependencies: key changes with the data of the other runs
  const grid = useMemo(
    () =>
      mergeGrids([
        { run: id, grid: gridOf(data ?? []) },
        ...others.map((run, index) => ({ run, grid: gridOf(otherSamples[index]?.data ?? []) })),
      ]),
    [id, data, key],
  );
  return (
    <Panel
      title="Samples"
      flush
      actions={
        <>
          <span className="text-xs text-muted-foreground">
            {data && data.length > 0 ? `${count(data.length)} images` : ""}
          </span>
          <ToggleGroup label="Image size" options={SIZES} value={size} onChange={setSize} />
        </>
      }
    >
      {error && !data ? (
        <div className="p-4">
          <ErrorAlert error={error} onRetry={() => void refetch()} />
        </div>
      ) : !data ? (
        <div className="flex gap-2 p-4">
          {[0, 1, 2, 3].map((index) => (
            <Skeleton key={index} className="size-36" />
          ))}
        </div>
      ) : data.length === 0 ? (
        <Empty title="No samples yet">
          {isActive
            ? "Samples appear here as the run generates them. “Sample now” generates them at the next step."
            : "This run generated no samples."}
        </Empty>
      ) : (
        <Grid grid={grid} size={size} onOpen={setCell} />
      )}
      {cell && <Lightbox grid={grid} cell={cell} onMove={setCell} onClose={() => setCell(null)} />}
    </Panel>
  );
}
