/** Reading a log in parts while it grows. */
import type { Schemas } from "@/lib/api/client";

type LogPart = Pick<Schemas["LogPart"], "text" | "next_offset" | "size">;

interface Handlers<Part extends LogPart> {
  /** Called with each part; `isFirst`: it replaces all text. */
  onPart: (part: Part, isFirst: boolean) => void;
  onError: (error: unknown) => void;
}

const FIRST = -65_536;
export const POLL_MS = 1500;

/**
 * Follow a log until `end` is called, without gaps or repeats. It pauses while the tab is hidden.
 * `first`: the offset to start at; negative values count from the end.
 */
export function tailLog<Part extends LogPart>(
  read: (offset: number) => Promise<Part>,
  { onPart, onError }: Handlers<Part>,
  start = FIRST,
) {
  let offset: number | null = null;
  let hasEnded = false;
  let isGrowing = true;
  let timer: ReturnType<typeof setTimeout> | undefined;

  const poll = async () => {
    // A response requested before the run ended may miss the last lines.
    const wasGrowing = isGrowing;
    let isWhole = false;
    try {
      if (!document.hidden) {
        const part = await read(offset ?? start);
        if (hasEnded) return;
        onPart(part, offset === null);
        isWhole = part.next_offset >= part.size || part.text === "";
        offset = part.next_offset;
      }
    } catch (error) {
      if (hasEnded) return;
      onError(error);
    }
    if (wasGrowing || isGrowing || !isWhole) timer = setTimeout(poll, POLL_MS);
    else timer = undefined;
  };
  timer = setTimeout(poll, 0);
  return {
    /** Set whether the log still grows. */
    grow: (grows: boolean) => {
      isGrowing = grows;
      // Also read the lines between the last request and the end.
      timer ??= setTimeout(poll, 0);
    },
    end: () => {
      hasEnded = true;
      clearTimeout(timer);
    },
  };
}
