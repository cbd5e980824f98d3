import type { RunState } from "@/lib/api/client";
import { cx } from "./classes";

const LOOKS: Record<RunState, { dot: string; text: string; label: string }> = {
  running: { dot: "bg-indigo animate-[breathe_2s_infinite]", text: "text-indigo", label: "Running" },
  stopping: { dot: "bg-weld animate-[breathe_1s_infinite]", text: "text-weld", label: "Stopping" },
  queued: { dot: "border border-line-strong", text: "text-ink-soft", label: "Queued" },
  created: { dot: "border border-line-strong", text: "text-ink-faint", label: "Created" },
  finished: { dot: "bg-nettle", text: "text-nettle", label: "Finished" },
  stopped: { dot: "bg-ink-faint", text: "text-ink-soft", label: "Stopped" },
  failed: { dot: "bg-madder", text: "text-madder", label: "Failed" },
  interrupted: { dot: "bg-weld", text: "text-weld", label: "Interrupted" },
  damaged: { dot: "bg-madder", text: "text-madder", label: "Damaged" },
};

/** A run's state: a dot and a word, so that colour never says it alone. */
export function State({ state, className }: { state: RunState; className?: string }) {
  const look = LOOKS[state];
  return (
    <span
      className={cx(
        "inline-flex items-center gap-1.5 text-xs font-medium whitespace-nowrap",
        look.text,
        className,
      )}
    >
      <span className={cx("size-2 rounded-full", look.dot)} />
      {look.label}
    </span>
  );
}
