import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { POLL_MS, tailLog } from "@/lib/log-tail";

let log = "";
let page = { hidden: false };

const ask = async (offset: number) => {
  const begin = offset < 0 ? Math.max(0, log.length + offset) : offset;
  const text = log.slice(begin, begin + 100);
  return { text, next_offset: begin + text.length, size: log.length };
};

function read() {
  const seen = { text: "", errors: 0 };
  const follower = tailLog(ask, {
    onPart: (part, isFirst) => {
      seen.text = isFirst ? part.text : seen.text + part.text;
    },
    onError: () => {
      seen.errors += 1;
    },
  });
  return { seen, follower };
}

beforeEach(() => {
  vi.useFakeTimers();
  log = "";
  page = { hidden: false };
  vi.stubGlobal("document", page);
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test("the last lines of a run are read, even if it ended in a hidden tab", async () => {
  log = "begun\n";
  const { seen, follower } = read();
  await vi.advanceTimersByTimeAsync(POLL_MS);
  page.hidden = true;
  log += "Traceback\n";
  follower.grow(false);
  await vi.advanceTimersByTimeAsync(10 * POLL_MS);
  page.hidden = false;
  await vi.advanceTimersByTimeAsync(2 * POLL_MS);
  expect(seen.text).toBe("begun\nTraceback\n");
  follower.end();
});

test("the end of a run keeps the text read before", async () => {
  log = "a".repeat(250);
  const { seen, follower } = read();
  await vi.advanceTimersByTimeAsync(5 * POLL_MS);
  follower.grow(false);
  await vi.advanceTimersByTimeAsync(5 * POLL_MS);
  expect(seen.text).toBe(log);
  expect(vi.getTimerCount()).toBe(0);
});

test("a resumed run is followed again", async () => {
  log = "one\n";
  const { seen, follower } = read();
  follower.grow(false);
  await vi.advanceTimersByTimeAsync(5 * POLL_MS);
  log += "two\n";
  follower.grow(true);
  await vi.advanceTimersByTimeAsync(2 * POLL_MS);
  expect(seen.text).toBe("one\ntwo\n");
  follower.end();
  expect(vi.getTimerCount()).toBe(0);
});
