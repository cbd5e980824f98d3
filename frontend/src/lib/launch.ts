import type { RunView, Schemas } from "./api/client";

/** The machines of a run on a cluster, as typed. */
export interface LaunchFields {
  nodes: number;
  gpus: number;
  /** `time=12:00:00 account=art` */
  options: string;
}

export const ONE_MACHINE: LaunchFields = { nodes: 1, gpus: 0, options: "" };

/** Return the selected devices after a click: a cluster excludes every other device. */
export function toggled(
  selected: readonly string[],
  device: string,
  clusters: readonly Schemas["Place"][],
): string[] {
  if (selected.includes(device)) return selected.filter((each) => each !== device);
  const isCluster = (name: string) => clusters.some((cluster) => cluster.device === name);
  return isCluster(device) ? [device] : [...selected.filter((each) => !isCluster(each)), device];
}

/** Return the selected cluster. */
export const clusterOf = (selected: readonly string[], clusters: readonly Schemas["Place"][]) =>
  clusters.find((cluster) => selected.includes(cluster.device));

/** Return the problem with options as typed, or null if there is none. */
export function optionsProblem(text: string, allowed: readonly string[]): string | null {
  for (const [name, value] of words(text)) {
    if (value === undefined) return `Write ${name}=VALUE.`;
    if (!allowed.includes(name)) return `${name} cannot be set here. Allowed: ${allowed.join(", ")}.`;
  }
  return null;
}

/** Return the part of a request that describes the machines; null for devices of this machine. */
export function launchOf(
  fields: LaunchFields,
  cluster: Schemas["Place"] | undefined,
): Schemas["LaunchSettings"] | null {
  if (!cluster) return null;
  const options = Object.fromEntries(words(fields.options).map(([name, value]) => [name, value ?? ""]));
  return { nodes: fields.nodes, gpus: fields.gpus, options };
}

/** Return the current activity of a run; for a job that waits, the cluster's own words. */
export function activityOf(run: Pick<RunView, "phase" | "job">): string | null {
  if (run.phase !== "pending" || !run.job) return run.phase ?? null;
  return `${run.job.launcher} job ${run.job.job_id}: ${run.job.detail || "submitted"}`;
}

function words(text: string): [string, string | undefined][] {
  return text
    .split(/\s+/)
    .filter(Boolean)
    .map((word) => {
      const at = word.indexOf("=");
      return at < 0 ? [word, undefined] : [word.slice(0, at), word.slice(at + 1)];
    });
}
