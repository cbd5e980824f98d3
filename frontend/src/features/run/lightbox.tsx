"use client";
import { useEffect, useState } from "react";
import { Button } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { Dialog } from "@/components/ui/dialog";
import { count } from "@/lib/format";
import { nearest, promptAt, type SampleGrid, type SampleRow } from "@/lib/sample-grid";

interface Spot {
  row: number;
  column: number;
}

interface Props {
  grid: SampleGrid;
  spot: Spot;
  onMove: (spot: Spot) => void;
  onClose: () => void;
}

const MOVES: Record<string, [number, number]> = {
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
};

/** The same prompt of every run that is compared, at this step or its newest one before. */
function Beside({ rows, step }: { rows: SampleRow[]; step: number }) {
  return (
    <ul className="grid max-h-[56dvh] grid-cols-[repeat(auto-fit,minmax(14rem,1fr))] gap-2 overflow-y-auto">
      {rows.map((row) => {
        const sample = nearest(row, step);
        return (
          <li key={row.key} className="grid content-start gap-1 text-xs">
            <span className="truncate font-medium">
              {row.run}{" "}
              <span className="figure font-normal text-muted-foreground">step {count(sample?.step)}</span>
            </span>
            {sample && (
              <img
                src={sample.url}
                alt={`${sample.prompt ?? row.prompt}, by ${row.run}`}
                className="w-full rounded bg-muted object-contain"
              />
            )}
          </li>
        );
      })}
    </ul>
  );
}

/** One picture, large. Arrows: left and right through the steps, up and down through the prompts. */
export function Lightbox({ grid, spot, onMove, onClose }: Props) {
  const [isComparing, setComparing] = useState(false);
  const [cut, setCut] = useState(50);
  const [isBeside, setBeside] = useState(false);
  const row = grid.rows[spot.row];
  const step = grid.steps[spot.column] ?? 0;
  const sample = row?.byStep.get(step);
  const prompt = row ? promptAt(row, step) : "";
  const firstStep = grid.steps.find((each) => row?.byStep.has(each));
  const rivals = grid.rows.filter((each) => row?.run && each.prompt === row.prompt);
  const first = firstStep === undefined ? undefined : row?.byStep.get(firstStep);

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const move = MOVES[event.key];
      if (!move || (event.target as HTMLElement).tagName === "INPUT") return;
      event.preventDefault();
      const clamp = (value: number, most: number) => Math.max(0, Math.min(most, value));
      onMove({
        row: clamp(spot.row + move[0], grid.rows.length - 1),
        column: clamp(spot.column + move[1], grid.steps.length - 1),
      });
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [grid, spot, onMove]);

  return (
    <Dialog
      title={[`Step ${count(step)}`, row?.run, prompt].filter(Boolean).join(" · ")}
      isOpen
      onClose={onClose}
      width={isBeside ? "max-w-6xl" : "max-w-4xl"}
    >
      {isBeside && <Beside rows={rivals} step={step} />}
      <div
        hidden={isBeside}
        className={cx("relative place-items-center overflow-hidden rounded bg-muted", !isBeside && "grid")}
      >
        {sample ? (
          <img
            src={sample.url}
            alt={prompt}
            className="h-[56dvh] w-full object-contain [image-rendering:auto]"
          />
        ) : (
          <p className="grid h-[56dvh] place-items-center text-sm text-muted-foreground">
            No image for this row at this step.
          </p>
        )}
        {isComparing && first && (
          <img
            src={first.url}
            alt={`${first.prompt ?? row?.prompt}, step ${firstStep}`}
            className="absolute inset-0 h-[56dvh] w-full object-contain"
            style={{ clipPath: `inset(0 ${100 - cut}% 0 0)` }}
          />
        )}
      </div>
      <div className="mt-3 grid gap-3">
        <label className="grid grid-cols-[4rem_minmax(0,1fr)_5rem] items-center gap-3 text-xs text-secondary-foreground">
          Step
          <input
            type="range"
            min={0}
            max={grid.steps.length - 1}
            value={spot.column}
            onChange={(event) => onMove({ ...spot, column: Number(event.target.value) })}
            className="accent-primary"
          />
          <span className="figure text-right">{count(step)}</span>
        </label>
        {isComparing && (
          <label className="grid grid-cols-[4rem_minmax(0,1fr)_5rem] items-center gap-3 text-xs text-secondary-foreground">
            Before
            <input
              type="range"
              min={0}
              max={100}
              value={cut}
              onChange={(event) => setCut(Number(event.target.value))}
              className="accent-primary"
            />
            <span className="figure text-right">step {count(firstStep)}</span>
          </label>
        )}
        <div className="flex flex-wrap items-center justify-between gap-2">
          <ul className="figure flex flex-wrap gap-x-4 text-xs text-secondary-foreground">
            {sample?.from_batch && <li>caption from the batch</li>}
            {sample?.seed != null && <li>seed {sample.seed}</li>}
            {Object.entries(sample?.settings ?? {}).map(([name, value]) => (
              <li key={name}>
                {name} {String(value)}
              </li>
            ))}
          </ul>
          <div className="flex flex-wrap gap-2">
            {rivals.length > 1 && (
              <Button size="small" aria-pressed={isBeside} onClick={() => setBeside(!isBeside)}>
                {isBeside ? "Only this run" : "Compare runs"}
              </Button>
            )}
            <Button
              size="small"
              aria-pressed={isComparing}
              onClick={() => setComparing(!isComparing)}
              disabled={!first || isBeside}
            >
              {isComparing ? "Only this step" : "Before and after"}
            </Button>
            {sample && (
              <a
                className="inline-flex h-7 items-center rounded border bg-card px-2 text-xs font-medium hover:bg-muted"
                href={sample.url}
                download
              >
                Download
              </a>
            )}
          </div>
        </div>
      </div>
    </Dialog>
  );
}
