"use client";
import { useEffect, useState } from "react";
import { Button } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { Dialog } from "@/components/ui/dialog";
import type { Sample } from "@/lib/api/client";
import { count } from "@/lib/format";
import { nearest, promptAt, type SampleGrid, type SampleRow } from "@/lib/sample-grid";
import { SampleMedia } from "./sample-media";

interface Cell {
  row: number;
  column: number;
}

interface Props {
  grid: SampleGrid;
  cell: Cell;
  onMove: (cell: Cell) => void;
  onClose: () => void;
}

const MOVES: Record<string, [number, number]> = {
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
};

/** The same prompt by each compared run, at this step or the latest one before it. */
function RunsSideBySide({ rows, step }: { rows: SampleRow[]; step: number }) {
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
              <SampleMedia
                sample={sample}
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

function Slider({
  label,
  value,
  max,
  text,
  onChange,
}: {
  label: string;
  value: number;
  max: number;
  text: string;
  onChange: (value: number) => void;
}) {
  return (
    <label className="grid grid-cols-[4rem_minmax(0,1fr)_5rem] items-center gap-3 text-xs text-secondary-foreground">
      {label}
      <input
        type="range"
        min={0}
        max={max}
        value={value}
        onChange={(event) => onChange(Number(event.target.value))}
        className="accent-primary"
      />
      <span className="figure text-right">{text}</span>
    </label>
  );
}

/** Seed and settings of an image. */
function SampleFacts({ sample }: { sample: Sample | undefined }) {
  return (
    <ul className="figure flex flex-wrap gap-x-4 text-xs text-secondary-foreground">
      {sample?.from_batch && <li>caption from the batch</li>}
      {sample?.seed != null && <li>seed {sample.seed}</li>}
      {Object.entries(sample?.settings ?? {}).map(([name, value]) => (
        <li key={name}>
          {name} {String(value)}
        </li>
      ))}
    </ul>
  );
}

/** Arrow keys: left and right change the step, up and down the prompt. */
function useArrowKeys(grid: SampleGrid, cell: Cell, onMove: (cell: Cell) => void) {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const move = MOVES[event.key];
      if (!move || (event.target as HTMLElement).tagName === "INPUT") return;
      event.preventDefault();
      const clamp = (value: number, max: number) => Math.max(0, Math.min(max, value));
      onMove({
        row: clamp(cell.row + move[0], grid.rows.length - 1),
        column: clamp(cell.column + move[1], grid.steps.length - 1),
      });
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [grid, cell, onMove]);
}

/** The image or clip, with the first one of its prompt over its left part up to `cut` percent. */
function Canvas({
  sample,
  prompt,
  first,
  cut,
  isHidden,
}: {
  sample: Sample | undefined;
  prompt: string;
  first: { url: string; alt: string } | null;
  cut: number;
  isHidden: boolean;
}) {
  return (
    <div
      hidden={isHidden}
      className={cx("relative place-items-center overflow-hidden rounded bg-muted", !isHidden && "grid")}
    >
      {sample ? (
        <SampleMedia
          sample={sample}
          alt={prompt}
          className="h-[56dvh] w-full object-contain [image-rendering:auto]"
        />
      ) : (
        <p className="grid h-[56dvh] place-items-center text-sm text-muted-foreground">
          No image for this row at this step.
        </p>
      )}
      {first && (
        <img
          src={first.url}
          alt={first.alt}
          className="absolute inset-0 h-[56dvh] w-full object-contain"
          style={{ clipPath: `inset(0 ${100 - cut}% 0 0)` }}
        />
      )}
    </div>
  );
}

/** A large image, to compare with other steps and runs. */
export function Lightbox({ grid, cell, onMove, onClose }: Props) {
  const [isBeforeShown, setBeforeShown] = useState(false);
  const [cut, setCut] = useState(50);
  const [isComparingRuns, setComparingRuns] = useState(false);
  useArrowKeys(grid, cell, onMove);
  const row = grid.rows[cell.row];
  const step = grid.steps[cell.column] ?? 0;
  const sample = row?.byStep.get(step);
  const prompt = row ? promptAt(row, step) : "";
  const firstStep = grid.steps.find((each) => row?.byStep.has(each));
  const first = firstStep === undefined ? undefined : row?.byStep.get(firstStep);
  const samePrompt = grid.rows.filter((each) => row?.run && each.prompt === row.prompt);
  return (
    <Dialog
      title={[`Step ${count(step)}`, row?.run, prompt].filter(Boolean).join(" · ")}
      isOpen
      onClose={onClose}
      width={isComparingRuns ? "max-w-6xl" : "max-w-4xl"}
    >
      {isComparingRuns && <RunsSideBySide rows={samePrompt} step={step} />}
      <Canvas
        sample={sample}
        prompt={prompt}
        first={
          isBeforeShown && first && sample?.media !== "video"
            ? { url: first.url, alt: `${first.prompt ?? row?.prompt}, step ${firstStep}` }
            : null
        }
        cut={cut}
        isHidden={isComparingRuns}
      />
      <div className="mt-3 grid gap-3">
        <Slider
          label="Step"
          value={cell.column}
          max={grid.steps.length - 1}
          text={count(step)}
          onChange={(column) => onMove({ ...cell, column })}
        />
        {isBeforeShown && (
          <Slider label="Before" value={cut} max={100} text={`step ${count(firstStep)}`} onChange={setCut} />
        )}
        <div className="flex flex-wrap items-center justify-between gap-2">
          <SampleFacts sample={sample} />
          <div className="flex flex-wrap gap-2">
            {samePrompt.length > 1 && (
              <Button
                size="small"
                aria-pressed={isComparingRuns}
                onClick={() => setComparingRuns(!isComparingRuns)}
              >
                {isComparingRuns ? "Only this run" : "Compare runs"}
              </Button>
            )}
            <Button
              size="small"
              aria-pressed={isBeforeShown}
              onClick={() => setBeforeShown(!isBeforeShown)}
              disabled={!first || isComparingRuns || sample?.media === "video"}
            >
              {isBeforeShown ? "Only this step" : "Before and after"}
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
