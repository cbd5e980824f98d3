import { createServer, type Server } from "node:http";
import { afterEach, beforeEach, expect, test } from "vitest";
import { itemOf, uploadAll } from "@/lib/upload";

/** A small tus server that breaks a part in the middle, once. */
let server: Server;
let received = Buffer.alloc(0);
let begun = 0;
let breaks = 1;

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
  server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on("data", (part: Buffer) => parts.push(part));
    request.on("end", () => {
      if (request.method === "POST") {
        begun += 1;
        response.writeHead(201, { location: "/api/datasets/fox/uploads/1" }).end();
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

test("a broken part is sent on from where it broke, and nothing twice", { timeout: 20_000 }, async () => {
  const item = itemOf(new File(["0123456789"], "a.png"), "den/a.png");
  await uploadAll("fox", [item], () => {}, new AbortController().signal);
  expect(item.error).toBeUndefined();
  expect(item.state).toBe("done");
  expect(received.toString()).toBe("0123456789");
  expect(begun).toBe(1);
});
