import { describe, expect, test } from "vitest";
import { changesFrom, differences, laidOver, pointed, same, withAt } from "@/lib/json";

const defaults = {
  training: { lr: 1e-5, seed: 0 },
  optimizer: { kind: "adamw", betas: [0.9, 0.999] },
  lora: null,
  prompts: ["a"],
};

describe("changes from the defaults", () => {
  test("merged into the defaults, they give the whole configuration", () => {
    for (const whole of [
      defaults,
      { ...defaults, training: { lr: 1, seed: 0 } },
      { ...defaults, lora: { rank: 4 } },
      { ...defaults, optimizer: { kind: "sgd", momentum: 0.9 } },
      { ...defaults, prompts: [] },
    ]) {
      expect(laidOver(defaults, changesFrom(defaults, whole) ?? {})).toEqual(whole);
    }
  });

  test("are undefined if nothing differs", () => {
    expect(changesFrom(defaults, structuredClone(defaults))).toBeUndefined();
  });

  test("include the kind of a changed section", () => {
    const whole = { ...defaults, optimizer: { kind: "adamw", betas: [0.9, 0.99] } };
    expect(changesFrom(defaults, whole)).toEqual({ optimizer: { kind: "adamw", betas: [0.9, 0.99] } });
  });
});

test("a section with a changed kind keeps nothing of the old one", () => {
  expect(laidOver(defaults, { optimizer: { kind: "sgd" } })).toMatchObject({ optimizer: { kind: "sgd" } });
  expect(laidOver(defaults, { optimizer: { kind: "sgd" } })).not.toHaveProperty("optimizer.betas");
});

test("setting a path does not change the original", () => {
  const before = structuredClone(defaults);
  expect(withAt(defaults, ["training", "lr"], 2)).toHaveProperty("training.lr", 2);
  expect(withAt(defaults, ["prompts", "0"], "b")).toHaveProperty("prompts", ["b"]);
  expect(withAt(defaults, ["prompts", "0"], undefined)).toHaveProperty("prompts", []);
  expect(withAt(defaults, ["lora", "rank"], 8)).toHaveProperty("lora", { rank: 8 });
  expect(defaults).toEqual(before);
});

test("differences are listed leaf by leaf", () => {
  expect(differences(defaults, { ...defaults, training: { lr: 2, seed: 0 } })).toEqual([
    { path: "training.lr", from: 1e-5, to: 2 },
  ]);
});

test("equality compares lists and trees", () => {
  expect(same({ a: [1, { b: null }] }, { a: [1, { b: null }] })).toBe(true);
  expect(same([1, 2], [2, 1])).toBe(false);
});

test("JSON pointers are unescaped", () => {
  expect(pointed("/config/a~1b/c~0d/0")).toEqual(["config", "a/b", "c~d", "0"]);
});
