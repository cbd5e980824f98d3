/** Resumable uploads by the tus protocol 1.0, a few at a time. */
import { Problem, problemOf } from "./api/client";

const VERSION = "1.0.0";
const PART_BYTES = 8 * 2 ** 20;
const AT_A_TIME = 3;
const TRIES = 6;

export interface Item {
  file: File;
  /** With its folders. */
  path: string;
  sent: number;
  state: "waiting" | "sending" | "done" | "failed";
  error?: string;
}

const base64 = (text: string) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function refusal(response: Response): Promise<Problem> {
  return problemOf(await response.json().catch(() => undefined), response.status);
}

const keyOf = (dataset: string, item: Item) =>
  `flowloom.upload.${dataset}.${item.path}.${item.file.size}.${item.file.lastModified}`;

async function begin(dataset: string, item: Item): Promise<string> {
  const kept = localStorage.getItem(keyOf(dataset, item));
  if (kept) return kept;
  const response = await fetch(`/api/datasets/${encodeURIComponent(dataset)}/uploads`, {
    method: "POST",
    headers: {
      "tus-resumable": VERSION,
      "upload-length": String(item.file.size),
      "upload-metadata": `relativePath ${base64(item.path)}`,
    },
  });
  if (!response.ok) throw await refusal(response);
  const place = response.headers.get("location") ?? "";
  localStorage.setItem(keyOf(dataset, item), place);
  return place;
}

/** How much of it the server has; null where it knows of no such upload any more. */
async function offsetOf(place: string): Promise<number | null> {
  const response = await fetch(place, { method: "HEAD", headers: { "tus-resumable": VERSION } });
  return response.ok ? Number(response.headers.get("upload-offset") ?? 0) : null;
}

async function send(dataset: string, item: Item, onChange: () => void, signal: AbortSignal): Promise<void> {
  let tries = 0;
  while (!signal.aborted) {
    try {
      const place = await begin(dataset, item);
      const offset = await offsetOf(place);
      if (offset === null) {
        localStorage.removeItem(keyOf(dataset, item));
        if (tries++ > TRIES) throw new Problem("The upload was lost.", "", "Try again.", 0);
        continue;
      }
      item.sent = offset;
      while (item.sent < item.file.size) {
        const response = await fetch(place, {
          method: "PATCH",
          signal,
          headers: {
            "tus-resumable": VERSION,
            "upload-offset": String(item.sent),
            "content-type": "application/offset+octet-stream",
          },
          body: item.file.slice(item.sent, item.sent + PART_BYTES),
        });
        if (!response.ok) throw await refusal(response);
        item.sent = Number(response.headers.get("upload-offset"));
        tries = 0;
        onChange();
      }
      localStorage.removeItem(keyOf(dataset, item));
      return;
    } catch (error) {
      const isFinal =
        error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 409;
      if (isFinal || signal.aborted || tries++ >= TRIES) throw error;
      await sleep(Math.min(500 * 2 ** tries, 8000));
    }
  }
}

/** Uploads all, and says after each part how it stands. A broken connection is waited for. */
export async function uploadAll(
  dataset: string,
  items: Item[],
  onChange: () => void,
  signal: AbortSignal,
): Promise<void> {
  const waiting = [...items];
  const work = async () => {
    for (let item = waiting.shift(); item && !signal.aborted; item = waiting.shift()) {
      item.state = "sending";
      onChange();
      try {
        await send(dataset, item, onChange, signal);
        item.state = signal.aborted ? "waiting" : "done";
      } catch (error) {
        item.state = "failed";
        item.error = error instanceof Error ? error.message : String(error);
      }
      onChange();
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
}

const WANTED = /\.(png|jpe?g|webp|gif|avif|bmp|jxl|txt|caption|jsonl?|csv|zip)$/i;

/** Files of a drop, with those in dropped folders. */
export async function filesOf(transfer: DataTransfer): Promise<Item[]> {
  const entries = [...transfer.items]
    .map((item) => item.webkitGetAsEntry?.())
    .filter((entry) => entry != null);
  if (entries.length === 0) return [...transfer.files].map((file) => itemOf(file, file.name));
  const found: Item[] = [];
  const walk = async (entry: FileSystemEntry, below: string): Promise<void> => {
    if (entry.isFile) {
      const file = await new Promise<File>((resolve, reject) =>
        (entry as FileSystemFileEntry).file(resolve, reject),
      );
      if (WANTED.test(file.name)) found.push(itemOf(file, below + file.name));
      return;
    }
    const reader = (entry as FileSystemDirectoryEntry).createReader();
    for (;;) {
      const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
        reader.readEntries(resolve, reject),
      );
      if (some.length === 0) return;
      for (const each of some) await walk(each, `${below}${entry.name}/`);
    }
  };
  for (const entry of entries) await walk(entry, "");
  // One dropped folder is the data set itself: its own name need not be a folder in it.
  const first = entries[0];
  if (entries.length === 1 && first?.isDirectory) {
    for (const item of found) item.path = item.path.slice(first.name.length + 1);
  }
  return found;
}

export const itemOf = (file: File, path: string): Item => ({ file, path, sent: 0, state: "waiting" });
