"use client";
import { WarnIcon } from "@/components/ui/icons";
import type { RunEvent } from "@/hooks/use-run-events";
import type { RunView } from "@/lib/api/client";

/** The run's error with its hint, its note, and its warnings. */
export function RunAlerts({
  run,
  notes,
  damagedLines,
}: {
  run: RunView;
  notes: RunEvent[];
  damagedLines: number;
}) {
  const warnings = notes.filter((note) => note.kind === "warning");
  const skipped = notes.filter((note) => note.kind === "skipped");
  const removed = notes.filter((note) => note.kind === "removed");
  return (
    <>
      {run.error && (
        <div
          role="alert"
          className="mb-4 flex gap-3 rounded-lg border border-destructive bg-destructive-subtle px-4 py-3 text-sm"
        >
          <WarnIcon className="mt-0.5 size-4 text-destructive" />
          <div className="min-w-0">
            <p className="font-semibold [overflow-wrap:anywhere]">{run.error.message}</p>
            {run.error.hint && <p className="mt-1 text-secondary-foreground">{run.error.hint}</p>}
          </div>
        </div>
      )}
      {run.note && (
        <p className="mb-4 rounded-lg border bg-card px-4 py-2.5 text-sm text-secondary-foreground">
          {run.note}
        </p>
      )}
      {damagedLines > 0 && (
        <p className="mb-4 rounded-lg border border-warning bg-warning-subtle px-4 py-2.5 text-sm">
          {damagedLines === 1 ? "1 line" : `${damagedLines} lines`} of events.jsonl cannot be read and{" "}
          {damagedLines === 1 ? "was" : "were"} skipped: the disk or another program has damaged the file.
        </p>
      )}
      {warnings.length + skipped.length + removed.length > 0 && (
        <details className="mb-4 rounded-lg border border-warning bg-warning-subtle px-4 py-2.5 text-sm">
          <summary className="font-medium">
            {[
              warnings.length > 0 && `${warnings.length} warning${warnings.length > 1 ? "s" : ""}`,
              skipped.length > 0 && `${skipped.length} row${skipped.length > 1 ? "s" : ""} skipped`,
              removed.length > 0 && `${removed.length} checkpoint${removed.length > 1 ? "s" : ""} deleted`,
            ]
              .filter(Boolean)
              .join(", ")}
          </summary>
          <ul className="mt-2 grid max-h-48 gap-1 overflow-y-auto text-xs [overflow-wrap:anywhere]">
            {warnings.map((note) => (
              <li key={note.seq}>
                {note.message} {note.hint}
              </li>
            ))}
            {removed.map((note) => (
              <li key={note.seq}>
                <code className="figure">{note.dir}</code>: {note.reason}
              </li>
            ))}
            {skipped.map((note) => (
              <li key={note.seq}>
                <code className="figure">
                  {note.file}:{note.line}
                </code>{" "}
                {note.reason}
              </li>
            ))}
          </ul>
        </details>
      )}
    </>
  );
}
