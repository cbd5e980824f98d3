import type { RunState } from "@/lib/api/client";
import { cx } from "./class-names";

const STYLES: Record<RunState, { dot: string; text: string; label: string }> = {
  running: { dot: "bg-primary animate-[breathe_2s_infinite]", text: "text-primary", label: "Running" },
  stopping: { dot: "bg-warning animate-[breathe_1s_infinite]", text: "text-warning", label: "Stopping" },
  queued: { dot: "border border-input", text: "text-secondary-foreground", label: "Queued" },
  created: { dot: "border border-input", text: "text-muted-foreground", label: "Created" },
  finished: { dot: "bg-success", text: "text-success", label: "Finished" },
  stopped: { dot: "bg-muted-foreground", text: "text-secondary-foreground", label: "Stopped" },
  failed: { dot: "bg-destructive", text: "text-destructive", label: "Failed" },
  interrupted: { dot: "bg-warning", text: "text-warning", label: "Interrupted" },
  damaged: { dot: "bg-destructive", text: "text-destructive", label: "Damaged" },
};

/** A run's state as a dot and a word, for readers who cannot distinguish the colours. */
export function StateBadge({ state, className }: { state: RunState; className?: string }) {
  const style = STYLES[state];
  return (
    <span
      className={cx(
        "inline-flex items-center gap-1.5 text-xs font-medium whitespace-nowrap",
        style.text,
        className,
      )}
    >
      <span className={cx("size-2 rounded-full", style.dot)} />
      {style.label}
    </span>
  );
}
