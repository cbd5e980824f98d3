import { Meter } from "@/components/ui/panel";
import type { RunView } from "@/lib/api/client";
import { count } from "@/lib/format";

function stepsOf(run: RunView): string {
  return run.max_steps ? `${count(run.step)} / ${count(run.max_steps)}` : count(run.step);
}

/** A run's step and progress bar. */
export function RunProgress({ run }: { run: RunView }) {
  const share = run.max_steps ? (run.step ?? 0) / run.max_steps : 0;
  return (
    <div className="grid gap-1">
      <span className="figure text-xs whitespace-nowrap">{stepsOf(run)}</span>
      {run.max_steps ? (
        <Meter
          value={share}
          label={`Progress of ${run.id}`}
          tone={run.state === "finished" ? "success" : "primary"}
        />
      ) : null}
    </div>
  );
}

export const runHref = (id: string) => `/runs/?id=${encodeURIComponent(id)}`;
