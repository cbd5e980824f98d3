"use client";
import { useId } from "react";
import { RadioCard } from "@/components/ui/cards";
import type { Preset } from "@/lib/api/client";
import { differences, type Json, shown } from "@/lib/json";

/** Where to begin: each says what it changes before it is chosen. */
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
  return (
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
            <span className="text-xs text-ink-soft">
              {preset?.note ?? "As the trainer has them, and nothing else."}
            </span>
            {changes.length > 0 && (
              <span className="figure mt-1 line-clamp-2 text-2xs text-ink-faint">
                {changes.flatMap(flat).join("  ")}
              </span>
            )}
          </RadioCard>
        );
      })}
    </div>
  );
}

function flat({ path, to }: { path: string; to: Json | undefined }): string[] {
  return differences({}, to ?? null, path).flatMap((each) =>
    each.to !== null && typeof each.to === "object" && !Array.isArray(each.to)
      ? Object.entries(each.to).map(([key, value]) => `${each.path}.${key} ${shown(value)}`)
      : [`${each.path} ${shown(each.to)}`],
  );
}
