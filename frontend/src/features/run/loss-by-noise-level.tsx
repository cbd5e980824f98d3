import { Panel } from "@/components/ui/panel";
import { figure } from "@/lib/format";

/** The mean loss in eight noise-level bins. */
export function LossByNoiseLevel({ levels }: { levels: (number | null)[] }) {
  if (!levels.some((level) => level !== null)) return null;
  const max = Math.max(...levels.map((level) => level ?? 0)) || 1;
  return (
    <Panel title="Loss by noise level">
      <ol
        className="flex h-36 items-end gap-1.5"
        aria-label="Mean loss in eight noise-level bins, latest steps"
      >
        {levels.map((level, index) => (
          <li key={index} className="flex h-full min-w-0 flex-1 flex-col justify-end gap-1 text-center">
            <span className="figure truncate text-2xs text-secondary-foreground">{figure(level, 2)}</span>
            <span
              className="rounded-t bg-primary"
              style={{
                height: `${Math.max(1, ((level ?? 0) / max) * 76)}%`,
                opacity: level === null ? 0.2 : 1,
              }}
            />
          </li>
        ))}
      </ol>
      <div className="mt-1 flex justify-between text-2xs text-muted-foreground">
        <span>0 (clean)</span>
        <span>last 400 steps</span>
        <span>1 (noise)</span>
      </div>
    </Panel>
  );
}
