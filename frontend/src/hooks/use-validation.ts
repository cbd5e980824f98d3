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

/** Problems by the dotted path of their field; "" for the whole configuration. */
export function byPath(places: readonly Place[]): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const place of places) {
    const path = pointed(place.pointer).slice(1).join(".");
    found.set(path, [...(found.get(path) ?? []), place.detail]);
  }
  return found;
}

/** Validate a configuration on the server, a moment after it changes. */
export function useValidation(trainer: string, config: Tree, isReady: boolean) {
  // The first validation is not delayed, because the page waits for it.
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
