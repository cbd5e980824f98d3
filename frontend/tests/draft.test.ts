import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { type Draft, EMPTY_DRAFT, loadDraft, saveDraft, withoutSecrets } from "@/lib/draft";

function storage() {
  const kept = new Map<string, string>();
  return {
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, value: string) => void kept.set(key, value),
  };
}

const draft = (name: string, config = {}): Draft => ({ ...EMPTY_DRAFT, name, config });

/** A tab: its own session storage, and the local storage of all tabs. */
const sit = (session: ReturnType<typeof storage>) => vi.stubGlobal("sessionStorage", session);

beforeEach(() => vi.stubGlobal("localStorage", storage()));
afterEach(() => vi.unstubAllGlobals());

test("two tabs keep a draft each, and a third starts with the latest", () => {
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

test("a token typed into the form is not stored in the browser", () => {
  sit(storage());
  saveDraft("flow", draft("fox", { training: { wandb_key: "abc", lr: 1 } }));
  expect(loadDraft("flow").config).toEqual({ training: { lr: 1 } });
});

test("tokens in lists are found, too", () => {
  const { config, removed } = withoutSecrets({ datasets: [{ api_key: "k", path: "a" }] });
  expect(config).toEqual({ datasets: [{ path: "a" }] });
  expect(removed).toEqual(["datasets.0.api_key"]);
});
