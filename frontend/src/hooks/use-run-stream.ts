import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useMemo, useRef, useState } from "react";
import type { Metrics, Schemas } from "@/lib/api/client";
import { metrics } from "@/lib/api/queries";
import { type Connection, type RunEvent, useRunEvents } from "./use-run-events";

export type Curve = keyof Schemas["MetricSeries"];

export const CURVES = Object.keys({
  loss: true,
  loss_smooth: true,
  lr: true,
  grad_norm: true,
  samples_per_s: true,
  data_wait_s: true,
  step_s: true,
  peak_memory_mib: true,
} satisfies Record<Curve, true>) as Curve[];

/** A run's steps as columns: the downsampled metrics, then the events since. */
export interface Columns {
  steps: number[];
  curves: Record<Curve, (number | null)[]>;
}

/** The loss on held-out rows, of the weights or of their EMA. */
export type Validation = Pick<Schemas["Validated"], "step" | "loss" | "weights">;

/** Validations from the metrics and from the events since. */
export function validationsOf(base: Metrics | undefined, notes: readonly RunEvent[]): Validation[] {
  const fromMetrics = (base?.marks ?? []).filter((mark) => mark.kind === "validated");
  const since = notes
    .filter((note) => note.kind === "validated")
    .filter((note) => note.seq > (base?.last_seq ?? -1));
  return [...fromMetrics, ...since].flatMap(({ step, loss, weights }) =>
    typeof loss === "number" ? [{ step, loss, weights: weights ?? "raw" }] : [],
  );
}

const POINTS = 2000;
const MAX_LIVE = 1500;
const LEVELS = 8;
const RECENT_EVENTS = 400;
/** The oldest events are dropped if the metrics cannot be loaded for a long time. */
const MAX_KEPT = 20_000;
const MAX_NOTES = 200;

export function columnsOf(base: Metrics | undefined, live: readonly RunEvent[]): Columns {
  const steps = base ? [...base.steps] : [];
  const curves = Object.fromEntries(
    CURVES.map((name) => [name, [...(base?.series[name]?.mean ?? [])]]),
  ) as Columns["curves"];
  for (const event of live) {
    if (event.kind !== "step" || (base && event.seq <= base.last_seq)) continue;
    if (event.step <= (steps[steps.length - 1] ?? -1)) continue;
    steps.push(event.step);
    for (const name of CURVES) curves[name].push(event[name] ?? null);
  }
  return { steps, curves };
}

/** Drop events that the metrics include by now, except the latest ones, which the noise levels need. */
export function notInMetrics(events: RunEvent[], lastSeq: number): RunEvent[] {
  const num = events.filter((event) => event.seq > lastSeq).length;
  return events.slice(-Math.min(MAX_KEPT, Math.max(RECENT_EVENTS, num)));
}

/** The latest notes. Validations are counted apart, so that many skipped rows do not push them out. */
export function withNotes(old: readonly RunEvent[], batch: readonly RunEvent[]): RunEvent[] {
  const fresh = batch.filter((event) => NOTED.has(event.kind));
  if (fresh.length === 0) return old as RunEvent[];
  const all = [...old, ...fresh];
  const isCurve = (event: RunEvent) => event.kind === "validated";
  const kept = new Set([
    ...all.filter(isCurve).slice(-MAX_NOTES),
    ...all.filter((event) => !isCurve(event)).slice(-MAX_NOTES),
  ]);
  return all.filter((event) => kept.has(event));
}

/** Mean loss in eight noise-level bins over the latest steps. */
export function byNoiseLevel(events: readonly RunEvent[]): (number | null)[] {
  const sums = new Array<number>(LEVELS).fill(0);
  const counts = new Array<number>(LEVELS).fill(0);
  for (const event of events) {
    if (event.kind !== "step") continue;
    event.loss_by_noise_level?.forEach((value, index) => {
      if (value === null || index >= LEVELS) return;
      sums[index] = (sums[index] ?? 0) + value;
      counts[index] = (counts[index] ?? 0) + 1;
    });
  }
  return sums.map((sum, index) => (counts[index] ? sum / (counts[index] ?? 1) : null));
}

export interface RunStream {
  base: Metrics | undefined;
  columns: Columns;
  validations: Validation[];
  levels: (number | null)[];
  notes: RunEvent[];
  connection: Connection;
  error: unknown;
}

const REFRESHES: Partial<Record<RunEvent["kind"], string[]>> = {
  sampled: ["samples"],
  saved: ["checkpoints"],
  removed: ["checkpoints"],
  started: ["metrics", "config", "samples"],
};
const NOTED = new Set<RunEvent["kind"]>(["warning", "skipped", "removed", "failed", "uploaded", "validated"]);

/** A run's metrics, validations and notes, updated live. */
export function useRunStream(id: string): RunStream {
  const client = useQueryClient();
  const { data: base, error } = useQuery({ ...metrics(id, POINTS), staleTime: 60_000 });
  const events = useRef<RunEvent[]>([]);
  const notes = useRef<RunEvent[]>([]);
  const [count, setCount] = useState(0);

  const onEvents = useCallback(
    (batch: RunEvent[]) => {
      events.current = events.current.concat(batch.filter((event) => event.kind === "step"));
      notes.current = withNotes(notes.current, batch);
      // After a long absence, refetch each query once, not once per event.
      for (const key of new Set(batch.flatMap((event) => REFRESHES[event.kind] ?? []))) {
        void client.invalidateQueries({ queryKey: ["run", id, key] });
      }
      if (batch.some((event) => event.kind !== "step")) {
        void client.invalidateQueries({ queryKey: ["run", id], exact: true });
      }
      if (events.current.length > MAX_LIVE) {
        const fromMetrics = client.getQueryData(metrics(id, POINTS).queryKey);
        events.current = notInMetrics(events.current, fromMetrics?.last_seq ?? -1);
      }
      if (events.current.length > MAX_LIVE) {
        // Do not cancel a refetch in progress: restarted by every batch, it would never finish.
        void client.invalidateQueries(
          { queryKey: metrics(id, POINTS).queryKey, exact: true },
          { cancelRefetch: false },
        );
      }
      setCount((n) => n + 1);
    },
    [client, id],
  );
  const firstSeq = useRef<number | undefined>(undefined);
  if (base && firstSeq.current === undefined) firstSeq.current = Math.max(-1, base.last_seq - RECENT_EVENTS);
  const connection = useRunEvents(id, firstSeq.current, onEvents);

  // biome-ignore lint/correctness/useExhaustiveDependencies: count changes with the events, which are mutated in place
  const columns = useMemo(() => columnsOf(base, events.current), [base, count]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: as above
  const levels = useMemo(() => byNoiseLevel(events.current.slice(-RECENT_EVENTS)), [count]);
  const kept = notes.current;
  const validations = useMemo(() => validationsOf(base, kept), [base, kept]);
  return { base, columns, validations, levels, notes: notes.current, connection, error };
}
