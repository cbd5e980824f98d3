"use client";
import { useId } from "react";
import { RadioCard } from "@/components/ui/radio-card";
import type { Preset } from "@/lib/api/client";
import { differences, type Json, shown } from "@/lib/json";

const KINDS: Record<Preset["sources"][number]["kind"], string> = {
  documentation: "Documented",
  code: "From code",
  paper: "Paper",
  calculation: "Calculated",
  measurement: "Measured",
  judgement: "Our judgement",
};

/** Presets as cards that list their changes. */
export function Presets({
  presets,
  chosen,
  onChoose,
}: {
  presets: Preset[];
  chosen: string | null;
  onChoose: (preset: Preset | null) => void;
}) {
  const group = useId();
  const all: (Preset | null)[] = [null, ...presets];
  const selected = presets.find((preset) => preset.name === chosen);
  return (
    <div className="grid gap-2">
      <div role="radiogroup" aria-label="Preset" className="grid gap-2 sm:grid-cols-2 2xl:grid-cols-4">
        {all.map((preset) => {
          const isChosen = (preset?.name ?? null) === chosen;
          const changes = preset ? differences({}, preset.config as Json) : [];
          return (
            <RadioCard
              key={preset?.name ?? ""}
              group={group}
              isChosen={isChosen}
              onChoose={() => onChoose(preset)}
            >
              <span className="text-sm font-semibold">{preset?.title ?? "Defaults"}</span>
              <span className="text-xs text-secondary-foreground">
                {preset?.note ?? "The trainer's own defaults."}
              </span>
              {changes.length > 0 && (
                <span className="figure mt-1 line-clamp-2 text-2xs text-muted-foreground">
                  {changes.flatMap(flat).join("  ")}
                </span>
              )}
            </RadioCard>
          );
        })}
      </div>
      {selected && <Sources preset={selected} />}
    </div>
  );
}

/** The sources of a preset's values. */
function Sources({ preset }: { preset: Preset }) {
  return (
    <ul
      className="grid gap-0.5 px-1 text-2xs text-secondary-foreground"
      aria-label={`Where the values of ${preset.title} come from`}
    >
      {preset.sources.map((source) => (
        <li key={source.text}>
          <span className="font-medium">{KINDS[source.kind]}.</span> {source.text}
        </li>
      ))}
    </ul>
  );
}

function flat({ path, to }: { path: string; to: Json | undefined }): string[] {
  return differences({}, to ?? null, path).flatMap((each) =>
    each.to !== null && typeof each.to === "object" && !Array.isArray(each.to)
      ? Object.entries(each.to).map(([key, value]) => `${each.path}.${key} ${shown(value)}`)
      : [`${each.path} ${shown(each.to)}`],
  );
}
