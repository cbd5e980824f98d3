import { expect, test } from "vitest";
import { captionSaver, nextIndex, type Saving } from "@/lib/caption-saver";

/** A studio with one caption, which it replaces only if the version matches. */
function studio(caption: string) {
  const kept = { caption, version: "0", isDown: false };
  const put = async (text: string, version: string) => {
    await new Promise((done) => setTimeout(done, 5));
    if (kept.isDown) throw new Error("The studio is not responding.");
    if (version !== kept.version) throw new Error("It was changed since it was read.");
    kept.caption = text;
    kept.version = String(Number(kept.version) + 1);
    return { version: kept.version };
  };
  return { kept, put };
}

function saving(caption: string) {
  const { kept, put } = studio(caption);
  const states: Saving[] = [];
  const saver = captionSaver({ caption, version: "0" }, put, (state) => states.push(state));
  return { kept, states, saver };
}

test("text typed during a save is saved after it, based on the new version", async () => {
  const { kept, states, saver } = saving("fox");
  saver.type("fox, snow");
  const first = saver.save();
  saver.type("fox, snow, den");
  await Promise.all([first, saver.save()]);
  expect(kept.caption).toBe("fox, snow, den");
  expect(states).not.toContain("failed");
  expect(states.at(-1)).toBe("saved");
});

test("a failed save is reported and retried with the next one", async () => {
  const { kept, states, saver } = saving("fox");
  kept.isDown = true;
  saver.type("cat");
  await expect(saver.save()).rejects.toThrow("is not responding");
  expect(states.at(-1)).toBe("failed");
  kept.isDown = false;
  await saver.save();
  expect(kept.caption).toBe("cat");
  expect(states.at(-1)).toBe("saved");
});

test("another client's text is adopted only if there is no unsaved typing", async () => {
  const { saver } = saving("fox");
  expect(saver.adopt({ caption: "wolf", version: "7" })).toBe(true);
  saver.type("wolf, snow");
  expect(saver.adopt({ caption: "bear", version: "8" })).toBe(false);
});

test("our own saved text does not replace the text in the editor", async () => {
  const { saver } = saving("fox");
  saver.type("fox, ");
  await saver.save();
  expect(saver.adopt({ caption: "fox,", version: "1" })).toBe(false);
});

test("an image that leaves the list because of its new caption gives its place to the next one", () => {
  expect(nextIndex(4, true, 1, 10)).toBe(5);
  expect(nextIndex(4, false, 1, 9)).toBe(4);
  expect(nextIndex(4, false, -1, 9)).toBe(3);
  expect(nextIndex(9, true, 1, 10)).toBe(9);
  expect(nextIndex(0, true, -1, 10)).toBe(0);
});
