/** The report to attach to a bug report. */
import { queryOptions } from "@tanstack/react-query";
import { api, type Schemas, unwrap } from "@/lib/api/client";

export type Finding = Schemas["DoctorFinding"];

/** Failed checks first, otherwise in the same order. */
export function failedFirst(findings: readonly Finding[]): Finding[] {
  return [...findings.filter((each) => !each.is_ok), ...findings.filter((each) => each.is_ok)];
}

/** Replace paths in a text: they contain user names. */
export function withoutPaths(text: string): string {
  return text.replace(/(^|[\s(='"])(?:\/|~\/|[A-Za-z]:[\\/])[^\s,;:()'"]+/g, "$1…");
}

/** Run only on request: it imports all packages in a new process. */
export const doctor = queryOptions({
  queryKey: ["doctor"],
  queryFn: () => unwrap(api.GET("/api/system/doctor")),
  enabled: false,
  retry: false,
  staleTime: Number.POSITIVE_INFINITY,
});

/** Version, checks, machine and trainers as JSON, without secrets or paths. */
export async function systemReport(findings: readonly Finding[]): Promise<string> {
  const [health, machine, trainers, folders] = await Promise.all([
    unwrap(api.GET("/api/health")),
    unwrap(api.GET("/api/system")),
    unwrap(api.GET("/api/trainers")),
    unwrap(api.GET("/api/roots")),
  ]);
  return JSON.stringify(
    {
      flowloom: health.version,
      doctor: failedFirst(findings).map(
        ({ name, text, is_ok }) => `${is_ok ? "" : "! "}${name}: ${withoutPaths(text)}`,
      ),
      machine,
      trainers: trainers.map((each) => each.name),
      folders: folders.map(({ name, exists }) => ({ name, exists })),
      browser: navigator.userAgent,
    },
    null,
    2,
  );
}
