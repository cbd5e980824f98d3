/** Resumable uploads with the tus protocol 1.0, a few at a time. */

import { Problem, problemOf } from "@/lib/api/client";
import { BASE } from "./base-path";

const VERSION = "1.0.0";
const PART_BYTES = 8 * 2 ** 20;
const MAX_PARALLEL = 3;
const MAX_TRIES = 6;
/** Statuses of an unknown or expired upload. */
const GONE_STATUSES = new Set([404, 410]);
const DISK_FULL = 507;
/** The problem code for files such as Thumbs.db. */
const SKIPPED = "file-skipped";

export interface Item {
  file: File;
  /** The path inside the dataset. */
  path: string;
  sent: number;
  /** Skipped: neither an image nor a caption file; not an error. */
  state: "waiting" | "sending" | "done" | "failed" | "skipped";
  error?: string;
}

const base64 = (text: string) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

async function refusal(response: Response): Promise<Problem> {
  return problemOf(await response.json().catch(() => undefined), response.status);
}

const keyOf = (dataset: string, item: Item) =>
  `flowloom.upload.${dataset}.${item.path}.${item.file.size}.${item.file.lastModified}`;

/** The URLs of unfinished uploads, kept in localStorage if possible. */
const uploadUrls = {
  own: new Map<string, string>(),
  get(key: string): string | null {
    try {
      return this.own.get(key) ?? localStorage.getItem(key);
    } catch {
      return null;
    }
  },
  set(key: string, url: string) {
    this.own.set(key, url);
    try {
      localStorage.setItem(key, url);
    } catch {
      // The storage is full or blocked: the URL is known until the page is left.
    }
  },
  drop(key: string) {
    this.own.delete(key);
    try {
      localStorage.removeItem(key);
    } catch {
      // As above.
    }
  },
};

async function begin(dataset: string, item: Item): Promise<string> {
  const existing = uploadUrls.get(keyOf(dataset, item));
  if (existing) return existing;
  const response = await fetch(`${BASE}/api/datasets/${encodeURIComponent(dataset)}/uploads`, {
    method: "POST",
    headers: {
      "tus-resumable": VERSION,
      "upload-length": String(item.file.size),
      "upload-metadata": `relativePath ${base64(item.path)}`,
    },
  });
  if (!response.ok) throw await refusal(response);
  const url = response.headers.get("location") ?? "";
  uploadUrls.set(keyOf(dataset, item), url);
  return url;
}

/** The bytes that the server has; null if it no longer knows the upload. */
async function offsetOf(url: string, signal: AbortSignal): Promise<number | null> {
  const response = await fetch(url, { method: "HEAD", headers: { "tus-resumable": VERSION }, signal });
  if (response.ok) return Number(response.headers.get("upload-offset") ?? 0);
  if (GONE_STATUSES.has(response.status)) return null;
  throw await refusal(response);
}

/** True if a retry could help: an unreachable studio is waited for, an unreadable file is not. */
async function isWorthIt(error: unknown, item: Item, tries: number): Promise<boolean> {
  if (error instanceof Problem) {
    const isSaid = error.status < 500 && error.status !== 409;
    return !isSaid && error.status !== DISK_FULL && tries < MAX_TRIES;
  }
  try {
    await item.file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    throw new Problem("The file can no longer be read.", "", "Choose it again.", 400);
  }
}

/** Wait, at most until the signal aborts. */
const pause = (ms: number, signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });

async function send(dataset: string, item: Item, onChange: () => void, signal: AbortSignal): Promise<void> {
  let tries = 0;
  while (!signal.aborted) {
    try {
      const url = await begin(dataset, item);
      const offset = await offsetOf(url, signal);
      if (offset === null) {
        uploadUrls.drop(keyOf(dataset, item));
        if (tries++ > MAX_TRIES)
          throw new Problem("The studio no longer has this upload.", "", "Try again.", 0);
        continue;
      }
      item.sent = offset;
      while (item.sent < item.file.size) {
        const response = await fetch(url, {
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
      uploadUrls.drop(keyOf(dataset, item));
      return;
    } catch (error) {
      if (signal.aborted) return;
      if (!(await isWorthIt(error, item, tries++))) throw error;
      await pause(Math.min(500 * 2 ** tries, 8000), signal);
    }
  }
}

/** Upload all items and call `onChange` after each part. Waits for a broken connection. */
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
      item.error = undefined;
      onChange();
      try {
        await send(dataset, item, onChange, signal);
        item.state = signal.aborted ? "waiting" : "done";
      } catch (error) {
        item.state = error instanceof Problem && error.code === SKIPPED ? "skipped" : "failed";
        item.error = error instanceof Error ? error.message : String(error);
      }
      onChange();
    }
  };
  await Promise.all(Array.from({ length: MAX_PARALLEL }, work));
}

const WANTED = /\.(png|jpe?g|webp|gif|avif|bmp|jxl|txt|caption|jsonl?|csv|zip)$/i;

/** The files of a drop, including those in dropped folders. */
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
  // A single dropped folder becomes the dataset itself, so its name is dropped from the paths.
  const first = entries[0];
  if (entries.length === 1 && first?.isDirectory) {
    for (const item of found) item.path = item.path.slice(first.name.length + 1);
  }
  return found;
}

/** A file's path inside the chosen folder, which becomes the dataset itself. */
export const belowTop = (file: File) =>
  (file.webkitRelativePath ?? "").split("/").slice(1).join("/") || file.name;

export const itemOf = (file: File, path: string): Item => ({ file, path, sent: 0, state: "waiting" });

/** The files that are not being uploaded already. */
export function newOf(items: readonly Item[], found: readonly Item[], isBusy: boolean): Item[] {
  const underWay = new Set(
    items
      .filter((item) => item.state === "sending" || (isBusy && item.state === "waiting"))
      .map((item) => item.path),
  );
  return found.filter((item) => !underWay.has(item.path));
}
