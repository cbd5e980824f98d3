/** A caption that is saved as it is typed. */

export type Saving = "saved" | "typing" | "saving" | "failed";

export interface Kept {
  caption: string;
  version: string;
}

const QUIET_MS = 700;

export interface CaptionSaver {
  /** Saves it a moment later. */
  type: (text: string) => void;
  /** Saves now what is not saved yet; rejects where that fails. */
  save: () => Promise<void>;
  /** Takes what somebody else wrote; false where it would go over what was typed. */
  adopt: (kept: Kept) => boolean;
}

/** One request at a time, each over the version that the one before it made. */
export function captionSaver(
  first: Kept,
  put: (caption: string, version: string) => Promise<{ version: string }>,
  tell: (state: Saving, error: unknown) => void,
): CaptionSaver {
  let { caption: kept, version } = first;
  let latest = kept;
  let running: Promise<void> | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;

  const run = async () => {
    try {
      while (latest !== kept) {
        const wanted = latest;
        tell("saving", null);
        ({ version } = await put(wanted, version));
        kept = wanted;
      }
      tell("saved", null);
    } catch (error) {
      tell("failed", error);
      throw error;
    } finally {
      running = null;
    }
  };
  const save = () => {
    clearTimeout(timer);
    if (!running && latest === kept) {
      tell("saved", null);
      return Promise.resolve();
    }
    running ??= run();
    return running;
  };
  return {
    save,
    type: (text) => {
      latest = text;
      tell("typing", null);
      clearTimeout(timer);
      // A failure is told; there is nobody here to catch it.
      timer = setTimeout(() => void save().catch(() => {}), QUIET_MS);
    },
    adopt: (theirs) => {
      // Of one's own save, what comes back may be trimmed: it is no reason to move what is being typed.
      if (running || latest !== kept || theirs.version === version) return false;
      version = theirs.version;
      kept = theirs.caption;
      latest = kept;
      return true;
    },
  };
}

/** Where `by` leads from `index`. What left the list meanwhile gave its place to the one after it. */
export function onward(index: number, isThere: boolean, by: number, total: number): number {
  const next = isThere || by < 0 ? index + by : index + by - 1;
  return Math.max(0, Math.min(total - 1, next));
}
