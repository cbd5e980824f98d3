/** What goes with a report of a fault. */
import { queryOptions } from "@tanstack/react-query";
import { api, got, type Schemas } from "@/lib/api/client";

export type Finding = Schemas["Finding"];

/** What is not as it should be comes first; the rest keeps its order. */
export function byNeed(findings: readonly Finding[]): Finding[] {
  return [...findings.filter((each) => !each.is_well), ...findings.filter((each) => each.is_well)];
}

/** A text without the folders in it: they carry names of people. */
export function withoutPaths(text: string): string {
  return text.replace(/(^|[\s(='"])(?:\/|~\/|[A-Za-z]:[\\/])[^\s,;:()'"]+/g, "$1…");
}

/** It imports all packages, in a process of its own: only when it is asked for. */
export const doctor = queryOptions({
  queryKey: ["doctor"],
  queryFn: () => got(api.GET("/api/system/doctor")),
  enabled: false,
  retry: false,
  staleTime: Number.POSITIVE_INFINITY,
});

/** All that is needed to help from afar; neither secrets nor paths. */
export async function systemReport(findings: readonly Finding[]): Promise<string> {
  const [health, machine, known, folders] = await Promise.all([
    got(api.GET("/api/health")),
    got(api.GET("/api/system")),
    got(api.GET("/api/trainers")),
    got(api.GET("/api/roots")),
  ]);
  return JSON.stringify(
    {
      flowloom: health.version,
      doctor: byNeed(findings).map(
        ({ name, text, is_well }) => `${is_well ? "" : "! "}${name}: ${withoutPaths(text)}`,
      ),
      machine,
      trainers: known.map((each) => each.name),
      folders: folders.map(({ name, exists }) => ({ name, exists })),
      browser: navigator.userAgent,
    },
    null,
    2,
  );
}
