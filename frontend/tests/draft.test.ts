import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { type Draft, loadDraft, saveDraft, withoutSecrets } from "@/lib/draft";

function storage() {
  const kept = new Map<string, string>();
  return {
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, value: string) => void kept.set(key, value),
  };
}

const draft = (name: string, config = {}): Draft => ({ name, preset: null, devices: [], config });

/** A tab: its own session, and the storage that all share. */
const sit = (session: ReturnType<typeof storage>) => vi.stubGlobal("sessionStorage", session);

beforeEach(() => vi.stubGlobal("localStorage", storage()));
afterEach(() => vi.unstubAllGlobals());

test("two tabs saveDraft a draft each, and a third begins with the newest", () => {
  const [one, two] = [storage(), storage()];
  sit(one);
  saveDraft("flow", draft("fox"));
  sit(two);
  saveDraft("flow", draft("cat"));
  sit(one);
  expect(loadDraft("flow").name).toBe("fox");
  sit(storage());
  expect(loadDraft("flow").name).toBe("cat");
});

test("a token that was typed into the form is not kept in the browser", () => {
  sit(storage());
  saveDraft("flow", draft("fox", { training: { wandb_key: "abc", lr: 1 } }));
  expect(loadDraft("flow").config).toEqual({ training: { lr: 1 } });
});

test("tokens in lists are found as well", () => {
  const { config, removed } = withoutSecrets({ datasets: [{ api_key: "k", path: "a" }] });
  expect(config).toEqual({ datasets: [{ path: "a" }] });
  expect(removed).toEqual(["datasets.0.api_key"]);
});
