import { useEffect, useRef, useState } from "react";
import type { Schemas } from "@/lib/api/client";
import { BASE } from "@/lib/base-path";

export type RunEvent = Schemas["RunEvent"];

export type Connection = "connecting" | "live" | "lost";

const KINDS = Object.keys({
  started: true,
  phase: true,
  step: true,
  progress: true,
  validated: true,
  sampled: true,
  saved: true,
  removed: true,
  uploaded: true,
  skipped: true,
  warning: true,
  failed: true,
  finished: true,
  stopped: true,
} satisfies Record<RunEvent["kind"], true>);
const BATCH_MS = 200;
const RECONNECT_MS = 2000;

/**
 * Follow a run's events after sequence number `after`, in batches. The browser reconnects
 * with the last number it received. A hidden tab closes its connection and catches up when
 * it is visible again, because browsers allow six connections per host.
 */
export function useRunEvents(
  id: string,
  after: number | undefined,
  onEvents: (events: RunEvent[]) => void,
): Connection {
  const [connection, setConnection] = useState<Connection>("connecting");
  const onEventsRef = useRef(onEvents);
  onEventsRef.current = onEvents;
  useEffect(() => {
    if (after === undefined) return;
    let last = after;
    let source: EventSource | null = null;
    let waiting: RunEvent[] = [];
    let timer: ReturnType<typeof setTimeout> | undefined;
    let retry: ReturnType<typeof setTimeout> | undefined;

    const flush = () => {
      timer = undefined;
      const batch = waiting;
      waiting = [];
      if (batch.length > 0) onEventsRef.current(batch);
    };
    const onEvent = (message: MessageEvent<string>) => {
      const event = JSON.parse(message.data) as RunEvent;
      if (event.seq <= last) return;
      last = event.seq;
      waiting.push(event);
      timer ??= setTimeout(flush, BATCH_MS);
    };
    const open = () => {
      if (source || document.hidden) return;
      source = new EventSource(`${BASE}/api/runs/${encodeURIComponent(id)}/events?after=${last}`);
      source.onopen = () => setConnection("live");
      source.onerror = () => {
        setConnection("lost");
        if (source?.readyState !== EventSource.CLOSED) return;
        close();
        retry = setTimeout(open, RECONNECT_MS);
      };
      for (const kind of KINDS) source.addEventListener(kind, onEvent);
    };
    const close = () => {
      source?.close();
      source = null;
    };
    const onVisibility = () => (document.hidden ? close() : open());
    open();
    document.addEventListener("visibilitychange", onVisibility);
    return () => {
      document.removeEventListener("visibilitychange", onVisibility);
      clearTimeout(timer);
      clearTimeout(retry);
      close();
    };
  }, [id, after]);
  return connection;
}
