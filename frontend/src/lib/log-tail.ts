/** A log, read by bytes as it grows. */

export interface LogPart {
  text: string;
  next_offset: number;
  size: number;
}

interface Told<Part extends LogPart> {
  /** More of it; `isFirst`: in place of all that was there. */
  onPart: (part: Part, isFirst: boolean) => void;
  onError: (error: unknown) => void;
}

const FIRST = -65_536;
export const EVERY_MS = 1500;

/**
 * Follows a log until it is ended: nothing twice, nothing left out. Nobody looks at a hidden tab: it is
 * read on when it is seen again. `finish` reads what is left of a log that grows no more. `first`: where it begins, in bytes before its end.
 */
export function tailLog<Part extends LogPart>(
  ask: (offset: number) => Promise<Part>,
  { onPart, onError }: Told<Part>,
  first = FIRST,
) {
  let offset: number | null = null;
  let isOver = false;
  let isGrowing = true;
  let timer: ReturnType<typeof setTimeout> | undefined;

  const look = async () => {
    // An answer that was asked for before its end may lack its last words.
    const wasGrowing = isGrowing;
    let isWhole = false;
    try {
      if (!document.hidden) {
        const part = await ask(offset ?? first);
        if (isOver) return;
        onPart(part, offset === null);
        isWhole = part.next_offset >= part.size || part.text === "";
        offset = part.next_offset;
      }
    } catch (error) {
      if (isOver) return;
      onError(error);
    }
    if (wasGrowing || isGrowing || !isWhole) timer = setTimeout(look, EVERY_MS);
    else timer = undefined;
  };
  timer = setTimeout(look, 0);
  return {
    /** It has ended, or goes on. */
    grow: (grows: boolean) => {
      isGrowing = grows;
      // What it said last, between the last look and its end, is read as well.
      timer ??= setTimeout(look, 0);
    },
    end: () => {
      isOver = true;
      clearTimeout(timer);
    },
  };
}
