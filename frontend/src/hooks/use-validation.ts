"use client";
import { useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import type { FieldProblem } from "@/lib/api/client";
import { type ConfigOwner, checkConfig } from "@/lib/api/queries";
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

/** The problems of each key, by its dotted path; "" for the whole configuration. */
export type Problems = ReadonlyMap<string, { code: FieldProblem["code"]; text: string }[]>;

export function byPath(problems: readonly FieldProblem[]): Problems {
  const grouped = new Map<string, { code: FieldProblem["code"]; text: string }[]>();
  for (const { where, code, detail, hint } of problems) {
    const path = pointed(where).slice(1).join(".");
    grouped.set(path, [...(grouped.get(path) ?? []), { code, text: `${detail} ${hint}`.trim() }]);
  }
  return grouped;
}

/** Validate a configuration on the server, a moment after it changes. */
export function useValidation(owner: ConfigOwner, config: Tree, isReady: boolean) {
  // The first validation is not delayed, because the page waits for it.
  const isJudged = useRef(false);
  const settled = useDebounced(config, isJudged.current ? QUIET_MS : 0);
  const { data, error, isFetching } = useQuery({
    queryKey: ["check", owner, settled],
    queryFn: () => checkConfig(owner, settled),
    enabled: isReady && (isJudged.current || settled === config),
    placeholderData: (old) => old,
    staleTime: 10_000,
    gcTime: 30_000,
    refetchInterval: (query) => (query.state.status === "error" ? AGAIN_MS : false),
  });
  isJudged.current ||= data !== undefined;
  return { verdict: data, error, isChecking: isFetching || settled !== config || (isReady && !data) };
}
