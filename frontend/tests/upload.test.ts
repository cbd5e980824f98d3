import { createServer, type Server } from "node:http";
import { afterEach, beforeEach, expect, test } from "vitest";
import { belowTop, type Item, itemOf, newOf, uploadAll } from "@/lib/upload";

/** A small tus server that breaks off once in the middle of a part. */
let server: Server;
let received = Buffer.alloc(0);
let begun = 0;
let breaks = 1;
/** Responses of HEAD, once each, before the real ones. */
let moods: number[] = [];
let refuses = 0;
let skips = false;
/** Called when a part starts to arrive; it gets no response. */
let hang: (() => void) | null = null;

const plain = globalThis.fetch;

const kept = new Map<string, string>();
Object.defineProperty(globalThis, "localStorage", {
  value: {
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, value: string) => kept.set(key, value),
    removeItem: (key: string) => kept.delete(key),
  },
});

beforeEach(async () => {
  received = Buffer.alloc(0);
  begun = 0;
  breaks = 1;
  moods = [];
  refuses = 0;
  skips = false;
  hang = null;
  kept.clear();
  server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on("data", (part: Buffer) => parts.push(part));
    request.on("end", () => {
      if (request.method === "POST" && skips) {
        response.writeHead(422, { "content-type": "application/problem+json" });
        response.end(JSON.stringify({ code: "file-skipped", title: "This file was skipped." }));
      } else if (request.method === "POST") {
        begun += 1;
        response.writeHead(201, { location: "/api/datasets/fox/uploads/1" }).end();
      } else if (request.method === "HEAD" && moods.length > 0) {
        response.writeHead(moods.shift() ?? 500).end();
      } else if (request.method === "PATCH" && hang) {
        hang();
      } else if (request.method === "PATCH" && refuses) {
        response.writeHead(refuses, { "content-type": "application/problem+json" });
        response.end(JSON.stringify({ title: "The studio cannot write there." }));
      } else if (request.method === "HEAD") {
        response.writeHead(200, { "upload-offset": String(received.length) }).end();
      } else {
        const body = Buffer.concat(parts);
        if (breaks-- > 0) {
          received = Buffer.concat([received, body.subarray(0, 4)]);
          request.socket.destroy();
          return;
        }
        received = Buffer.concat([received, body]);
        response.writeHead(204, { "upload-offset": String(received.length) }).end();
      }
    });
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const address = server.address();
  const origin = typeof address === "object" && address ? `http://127.0.0.1:${address.port}` : "";
  globalThis.fetch = (path, init) => plain(new URL(String(path), origin), init);
});

afterEach(() => {
  globalThis.fetch = plain;
  server.close();
});

test("a broken part continues at the break, and nothing is sent twice", { timeout: 20_000 }, async () => {
  const item = itemOf(new File(["0123456789"], "a.png"), "den/a.png");
  await uploadAll("fox", [item], () => {}, new AbortController().signal);
  expect(item.error).toBeUndefined();
  expect(item.state).toBe("done");
  expect(received.toString()).toBe("0123456789");
  expect(begun).toBe(1);
});

test("a temporary server error does not restart an upload", {
  timeout: 20_000,
}, async () => {
  moods = [503];
  const item = itemOf(new File(["0123456789"], "a.png"), "a.png");
  await uploadAll("fox", [item], () => {}, new AbortController().signal);
  expect(item.state).toBe("done");
  expect(begun).toBe(1);
});

test("an upload that the studio no longer has starts again", { timeout: 20_000 }, async () => {
  breaks = 0;
  moods = [404];
  const item = itemOf(new File(["0123456789"], "a.png"), "a.png");
  await uploadAll("fox", [item], () => {}, new AbortController().signal);
  expect(item.state).toBe("done");
  expect(begun).toBe(2);
});

test("a full disk is reported at once, without retries", async () => {
  refuses = 507;
  const item = itemOf(new File(["0123456789"], "a.png"), "a.png");
  await uploadAll("fox", [item], () => {}, new AbortController().signal);
  expect(item.state).toBe("failed");
  expect(item.error).toContain("cannot write");
});

test("a file that is neither image nor caption is skipped without a failure", async () => {
  skips = true;
  const item = itemOf(new File(["x"], "Thumbs.db"), "Thumbs.db");
  await uploadAll("fox", [item], () => {}, new AbortController().signal);
  expect(item.state).toBe("skipped");
  expect(begun).toBe(0);
});

test("a paused upload waits, is no failure, and continues from its offset", { timeout: 20_000 }, async () => {
  breaks = 0;
  const item = itemOf(new File(["0123456789"], "a.png"), "a.png");
  const later = itemOf(new File([], "b.png"), "b.png");
  const stop = new AbortController();
  hang = () => stop.abort();
  await uploadAll("fox", [item], () => {}, stop.signal);
  await uploadAll("fox", [later], () => {}, stop.signal);
  expect([item.state, later.state]).toEqual(["waiting", "waiting"]);
  expect(item.error).toBeUndefined();
  hang = null;
  await uploadAll("fox", [item], () => {}, new AbortController().signal);
  expect(item.state).toBe("done");
  expect(begun).toBe(1);
});

test("a full localStorage does not stop an upload", { timeout: 20_000 }, async () => {
  const set = localStorage.setItem;
  localStorage.setItem = () => {
    throw new DOMException("full", "QuotaExceededError");
  };
  const item = itemOf(new File(["0123456789"], "a.png"), "a.png");
  await uploadAll("fox", [item], () => {}, new AbortController().signal);
  localStorage.setItem = set;
  expect(item.state).toBe("done");
  expect(begun).toBe(1);
});

test("active uploads are not sent twice, failed ones are", () => {
  const item = (path: string, state: Item["state"]) => ({ ...itemOf(new File([], path), path), state });
  const items = [item("a.png", "sending"), item("b.png", "failed"), item("c.png", "waiting")];
  const found = ["a.png", "b.png", "c.png"].map((path) => item(path, "waiting"));
  expect(newOf(items, found, true).map((each) => each.path)).toEqual(["b.png"]);
  expect(newOf(items, found, false).map((each) => each.path)).toEqual(["b.png", "c.png"]);
});

test("a chosen folder becomes the dataset itself", () => {
  const chosen = (path: string) =>
    Object.assign(new File([], "a.png"), { webkitRelativePath: path }) satisfies File;
  expect([chosen("foxes/a.png"), chosen("foxes/den/a.png"), new File([], "a.png")].map(belowTop)).toEqual([
    "a.png",
    "den/a.png",
    "a.png",
  ]);
});
