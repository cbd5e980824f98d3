/** Saving a caption while it is typed. */

export type Saving = "saved" | "typing" | "saving" | "failed";

export interface Kept {
  caption: string;
  version: string;
}

const QUIET_MS = 700;

export interface CaptionSaver {
  /** Set the text; it is saved a moment later. */
  type: (text: string) => void;
  /** Save now; rejects on failure. */
  save: () => Promise<void>;
  /** Take another client's text; false if it would overwrite unsaved typing. */
  adopt: (kept: Kept) => boolean;
}

/** Save with one request at a time, each based on the version of the one before. */
export function captionSaver(
  first: Kept,
  put: (caption: string, version: string) => Promise<{ version: string }>,
  onChange: (state: Saving, error: unknown) => void,
): CaptionSaver {
  let { caption: kept, version } = first;
  let latest = kept;
  let running: Promise<void> | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;

  const run = async () => {
    try {
      while (latest !== kept) {
        const wanted = latest;
        onChange("saving", null);
        ({ version } = await put(wanted, version));
        kept = wanted;
      }
      onChange("saved", null);
    } catch (error) {
      onChange("failed", error);
      throw error;
    } finally {
      running = null;
    }
  };
  const save = () => {
    clearTimeout(timer);
    if (!running && latest === kept) {
      onChange("saved", null);
      return Promise.resolve();
    }
    running ??= run();
    return running;
  };
  return {
    save,
    type: (text) => {
      latest = text;
      onChange("typing", null);
      clearTimeout(timer);
      // A failure is reported in the state.
      timer = setTimeout(() => void save().catch(() => {}), QUIET_MS);
    },
    adopt: (remote) => {
      // The server may trim our own text; that must not change the text being typed.
      if (running || latest !== kept || remote.version === version) return false;
      version = remote.version;
      kept = remote.caption;
      latest = kept;
      return true;
    },
  };
}

/** The index `by` further. If the current item has left the list, the next one has taken its place. */
export function nextIndex(index: number, isThere: boolean, by: number, total: number): number {
  const next = isThere || by < 0 ? index + by : index + by - 1;
  return Math.max(0, Math.min(total - 1, next));
}
