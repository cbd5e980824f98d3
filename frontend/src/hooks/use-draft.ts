"use client";
import { useCallback, useEffect, useMemo, useState } from "react";
import { at, changesFrom, isTree, type Json, laidOver, type Tree, withAt } from "@/lib/json";

/** A form's values that differ from the defaults. They survive a reload and navigation. */
export interface Draft {
  name: string;
  preset: string | null;
  devices: string[];
  config: Tree;
}

const EMPTY: Draft = { name: "", preset: null, devices: [], config: {} };
const SECRET = /^(wandb_key|.*_token|.*(secret|password|api_key).*)$/i;

const keyOf = (trainer: string) => `flowloom.draft.${trainer}`;

/** Return this tab's draft; a new tab starts with the latest draft of all tabs. */
export function load(trainer: string): Draft {
  try {
    const text = sessionStorage.getItem(keyOf(trainer)) ?? localStorage.getItem(keyOf(trainer));
    const kept: unknown = JSON.parse(text ?? "null");
    return isTree(kept) && isTree(kept.config) ? { ...EMPTY, ...(kept as unknown as Draft) } : EMPTY;
  } catch {
    return EMPTY;
  }
}

/** Save the draft for this tab, safe from other tabs, and for the next visit. */
export function keep(trainer: string, draft: Draft): void {
  const text = JSON.stringify({ ...draft, config: withoutSecrets(draft.config).config });
  try {
    sessionStorage.setItem(keyOf(trainer), text);
    localStorage.setItem(keyOf(trainer), text);
  } catch {
    // The storage is full or blocked: the form works without a saved draft.
  }
}

/** Return a configuration without its tokens, and the tokens' paths. Tokens belong in the studio's secrets. */
export function withoutSecrets(config: Tree): { config: Tree; removed: string[] } {
  const removed: string[] = [];
  const clean = (value: Json, path: string): Json => {
    if (Array.isArray(value)) return value.map((item, index) => clean(item, `${path}.${index}`));
    if (!isTree(value)) return value;
    const kept: Tree = {};
    for (const [key, item] of Object.entries(value)) {
      const place = path ? `${path}.${key}` : key;
      if (SECRET.test(key) && typeof item === "string" && item !== "") removed.push(place);
      else kept[key] = clean(item, place);
    }
    return kept;
  };
  return { config: clean(config, "") as Tree, removed };
}

export function useDraft(trainer: string, defaults: Tree | undefined, presetConfig: Tree | undefined) {
  const [draft, setDraft] = useState<Draft>(EMPTY);
  const [isLoaded, setLoaded] = useState(false);
  useEffect(() => {
    setDraft(load(trainer));
    setLoaded(true);
  }, [trainer]);
  useEffect(() => {
    if (isLoaded) keep(trainer, draft);
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
