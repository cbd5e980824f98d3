import { describe, expect, test } from "vitest";
import { operationOf, outcomeWords, stageWords } from "@/components/datasets/bulk";
import { placeBefore } from "@/components/runs/queue";
import { leaves } from "@/lib/bring";
import { byPath } from "@/lib/check";
import { withoutSecrets } from "@/lib/draft";
import { ago, bytes, duration, figure, params, rate } from "@/lib/format";

describe("figures fit their place", () => {
  test.each([
    [0.71491234, "0.7149"],
    [0, "0"],
    [1.234e-5, "1.23e-5"],
    [null, "–"],
    [Number.NaN, "–"],
    [1234.5678, "1235"],
  ])("%j", (value, text) => expect(figure(value)).toBe(text));
  test("rates as they are written by hand", () => {
    expect(rate(1e-4)).toBe("1e-4");
    expect(rate(Math.fround(1e-4))).toBe("1e-4");
    expect(rate(0.0013)).toBe("1.3e-3");
  });
  test("times and sizes", () => {
    expect(duration(59.6)).toBe("1 m 00 s");
    expect(duration(3725)).toBe("1 h 02 m");
    expect(duration(90_000)).toBe("1 d 1 h");
    expect(bytes(1536)).toBe("1.5 KiB");
    expect(ago(0, 7200)).toBe("2 h ago");
    expect([8.9e9, 6.5e6, 40_960].map(params)).toEqual(["8.90 B", "6.5 M", "41 k"]);
  });
});

test("tokens never stay in a draft", () => {
  const { config, taken } = withoutSecrets({
    training: { wandb_key: "abc", lr: 1, hf_token: "" },
    api_key_x: "k",
  });
  expect(config).toEqual({ training: { lr: 1, hf_token: "" } });
  expect(taken).toEqual(["training.wandb_key", "api_key_x"]);
});

test("the server's problems are found at their fields", () => {
  const found = byPath([
    { pointer: "/config/training/lr", detail: "must be a number" },
    { pointer: "/config/training/lr", detail: "really" },
    { pointer: "/config", detail: "all of it" },
  ]);
  expect(found.get("training.lr")).toEqual(["must be a number", "really"]);
  expect(found.get("")).toEqual(["all of it"]);
});

test("a run that is dragged goes before the one that it was let go on", () => {
  expect(placeBefore(["a", "b", "c"], 0, 1)).toBe("c");
  expect(placeBefore(["a", "b", "c"], 2, 0)).toBe("a");
  expect(placeBefore(["a", "b", "c"], 0, 2)).toBeNull();
});

test("a FLOW file's keys are counted by section", () => {
  expect(leaves({ training: { lr: 1, seed: 2 }, datasets: [] })).toEqual([
    "training.lr",
    "training.seed",
    "datasets",
  ]);
});

test("edits are sent as the studio wants them", () => {
  expect(operationOf("add", "fox, snow ,", "", "start")).toEqual({
    kind: "add",
    tags: ["fox", "snow"],
    where: "start",
  });
  expect(operationOf("replace", " a ", " b ", "")).toEqual({ kind: "replace", tag: "a", by: "b" });
});

test("an edit says how far it is", () => {
  const stage = { title: "add", phase: "looking" as const, num_done: 0, num_total: 0 };
  expect(stageWords(stage)).toBe("Looking at the folder …");
  const writing = { ...stage, phase: "writing" as const, num_done: 42, num_total: 100 };
  expect(stageWords(writing)).toBe("42 of 100 captions are written");
});

test("an edit that was cancelled while it wrote tells what it changed, and its undo", () => {
  const edit = { id: "1", time: 0, title: "", num_changed: 1234, undoes: null, is_whole: false };
  expect(outcomeWords(edit).join(" ")).toMatch(/cancelled: 1.?234 captions were changed by then.*Undo/);
  expect(outcomeWords({ ...edit, is_whole: true })[0]).toMatch(/captions are changed/);
  expect(outcomeWords({ ...edit, is_whole: true, undoes: "0" })).toEqual([
    expect.stringMatching(/captions are as they were/),
  ]);
});
