"use client";
import { useCallback, useEffect, useMemo, useState } from "react";
import { type Draft, EMPTY_DRAFT, loadDraft, saveDraft } from "@/lib/draft";
import { at, changesFrom, type Json, laidOver, type Tree, withAt } from "@/lib/json";

/** The draft of a trainer's form, with the complete configuration and functions to change it. */
export function useDraft(trainer: string, defaults: Tree | undefined, presetConfig: Tree | undefined) {
  const [draft, setDraft] = useState<Draft>(EMPTY_DRAFT);
  const [isLoaded, setLoaded] = useState(false);
  useEffect(() => {
    setDraft(loadDraft(trainer));
    setLoaded(true);
  }, [trainer]);
  useEffect(() => {
    if (isLoaded) saveDraft(trainer, draft);
  }, [draft, isLoaded, trainer]);

  const base = useMemo(() => laidOver(defaults ?? {}, presetConfig ?? {}) as Tree, [defaults, presetConfig]);
  const whole = useMemo(() => laidOver(defaults ?? {}, draft.config) as Tree, [defaults, draft.config]);

  const setConfig = useCallback((config: Tree) => setDraft((old) => ({ ...old, config })), []);
  const set = useCallback(
    (path: readonly string[], value: Json | undefined) =>
      setDraft((old) => {
        const now = laidOver(defaults ?? {}, old.config);
        const next = withAt(now, path, value ?? at(defaults, path) ?? null);
        return { ...old, config: (changesFrom(defaults ?? {}, next) ?? {}) as Tree };
      }),
    [defaults],
  );
  const patch = useCallback((part: Partial<Draft>) => setDraft((old) => ({ ...old, ...part })), []);
  return { draft, isLoaded, base, whole, set, setConfig, patch };
}
