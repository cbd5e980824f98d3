"use client";
import { useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { fetchJson, type Place } from "@/lib/api/client";
import { pointed, type Tree } from "@/lib/json";

const QUIET_MS = 350;
const AGAIN_MS = 5000;

export function useDebounced<T>(value: T, quietMs = QUIET_MS): T {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), quietMs);
    return () => clearTimeout(timer);
  }, [value, quietMs]);
  return settled;
}

interface Verdict {
  is_valid: boolean;
  problems: Place[];
}

/** Problems by the dotted path of what they are about; "" for what is about the whole. */
export function byPath(places: readonly Place[]): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const place of places) {
    const path = pointed(place.pointer).slice(1).join(".");
    found.set(path, [...(found.get(path) ?? []), place.detail]);
  }
  return found;
}

/** What the server itself says of a configuration, a moment after it was changed. */
export function useValidation(trainer: string, config: Tree, isReady: boolean) {
  // The first answer is not waited for: a page shows nothing before it.
  const isJudged = useRef(false);
  const settled = useDebounced(config, isJudged.current ? QUIET_MS : 0);
  const { data, error, isFetching } = useQuery({
    queryKey: ["check", trainer, settled],
    queryFn: () => fetchJson<Verdict>(`/api/${trainer}/config`, { config: settled }),
    enabled: isReady && (isJudged.current || settled === config),
    placeholderData: (old) => old,
    staleTime: 10_000,
    gcTime: 30_000,
    refetchInterval: (query) => (query.state.status === "error" ? AGAIN_MS : false),
  });
  isJudged.current ||= data !== undefined;
  return { verdict: data, error, isChecking: isFetching || settled !== config || (isReady && !data) };
}
