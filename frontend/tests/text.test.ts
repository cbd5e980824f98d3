import { describe, expect, test } from "vitest";
import { type Toast, withToast } from "@/components/ui/toasts";
import { operationOf, outcomeText, stageText } from "@/features/datasets/caption-operations";
import { dropOf, movedIn, placeBefore } from "@/features/runs/queue";
import { byPath } from "@/hooks/use-validation";
import { withoutSecrets } from "@/lib/draft";
import { ago, bytes, duration, figure, params, rate } from "@/lib/format";
import { leaves } from "@/lib/import-files";

describe("numbers are short", () => {
  test.each([
    [0.71491234, "0.7149"],
    [0, "0"],
    [1.234e-5, "1.23e-5"],
    [null, "–"],
    [Number.NaN, "–"],
    [1234.5678, "1235"],
  ])("%j", (value, text) => expect(figure(value)).toBe(text));
  test("learning rates in short form", () => {
    expect(rate(1e-4)).toBe("1e-4");
    expect(rate(Math.fround(1e-4))).toBe("1e-4");
    expect(rate(0.0013)).toBe("1.3e-3");
    expect(rate(0)).toBe("0");
    expect(rate(Number.NaN)).toBe("–");
  });
  test("times and sizes", () => {
    expect(duration(59.6)).toBe("1 m 00 s");
    expect(duration(3725)).toBe("1 h 02 m");
    expect(duration(90_000)).toBe("1 d 1 h");
    expect(bytes(1536)).toBe("1.5 KiB");
    expect(bytes(511.7)).toBe("512 B");
    expect(ago(0, 7200)).toBe("2 h ago");
    expect([8.9e9, 6.5e6, 40_960].map(params)).toEqual(["8.90 B", "6.5 M", "41 k"]);
  });
  test("a day is the local day", () => {
    // 02:00 in London, and 21:00 of the day before in New York.
    expect(ago(Date.UTC(2026, 0, 2, 2) / 1000, Date.UTC(2026, 5, 1) / 1000)).toBe("2026-01-01");
  });
});

test("tokens never stay in a draft", () => {
  const { config, removed } = withoutSecrets({
    training: { wandb_key: "abc", lr: 1, hf_token: "" },
    api_key_x: "k",
  });
  expect(config).toEqual({ training: { lr: 1, hf_token: "" } });
  expect(removed).toEqual(["training.wandb_key", "api_key_x"]);
});

test("problems are assigned to their fields", () => {
  const found = byPath([
    { code: "wrong-type", where: "/config/training/lr", detail: "must be a number", hint: "" },
    { code: "invalid", where: "/config/training/lr", detail: "really", hint: "Lower it." },
    { code: "missing", where: "/config", detail: "all of it", hint: "" },
  ]);
  expect(found.get("training.lr")).toEqual([
    { code: "wrong-type", text: "must be a number" },
    { code: "invalid", text: "really Lower it." },
  ]);
  expect(found.get("")).toEqual([{ code: "missing", text: "all of it" }]);
});

test("a dragged run takes the place of the drop target", () => {
  expect(placeBefore(["a", "b", "c"], 0, 1)).toBe("c");
  expect(placeBefore(["a", "b", "c"], 2, 0)).toBe("a");
  expect(placeBefore(["a", "b", "c"], 0, 2)).toBeNull();
});

test("a drop moves the dragged run, even if the queue has changed meanwhile", () => {
  expect(dropOf(["b", "c", "d"], "d", "b")).toEqual({ id: "d", before: "b" });
  expect(dropOf(["b", "c"], "a", "c")).toBeNull();
  expect(dropOf(["b", "c"], null, "c")).toBeNull();
  expect(dropOf(["b", "c"], "b", "b")).toBeNull();
});

test("a move shows at once", () => {
  const runs = ["a", "b", "c"].map((id) => ({ id }));
  const ids = (before: string | null) => movedIn(runs, "a", before).map((run) => run.id);
  expect(ids("c")).toEqual(["b", "a", "c"]);
  expect(ids(null)).toEqual(["b", "c", "a"]);
  expect(ids("gone")).toEqual(["a", "b", "c"]);
});

test("a FLOW file's keys are counted by section", () => {
  expect(leaves({ training: { lr: 1, seed: 2 }, datasets: [] })).toEqual([
    "training.lr",
    "training.seed",
    "datasets",
  ]);
});

test("edits have the format of the API", () => {
  expect(operationOf("add", "fox, snow ,", "", "start")).toEqual({
    kind: "add",
    tags: ["fox", "snow"],
    where: "start",
  });
  expect(operationOf("replace", " a ", " b ", "end")).toEqual({ kind: "replace", tag: "a", by: "b" });
});

test("an edit reports its progress", () => {
  const stage = { title: "add", phase: "scanning" as const, num_done: 0, num_total: 0 };
  expect(stageText(stage)).toBe("Scanning the folder …");
  const writing = { ...stage, phase: "writing" as const, num_done: 42, num_total: 100 };
  expect(stageText(writing)).toBe("42 of 100 captions written");
});

test("an edit that was cancelled during writing reports its changes and its undo", () => {
  const edit = { id: "1", time: 0, title: "", num_changed: 1234, undoes: null, is_whole: false };
  expect(outcomeText(edit).join(" ")).toMatch(/Cancelled after changing 1.?234 captions.*Undo/);
  expect(outcomeText({ ...edit, is_whole: true })[0]).toMatch(/captions changed/);
  expect(outcomeText({ ...edit, is_whole: true, undoes: "0" })).toEqual([
    expect.stringMatching(/captions restored/),
  ]);
});

test("errors stay visible after later successes", () => {
  let all: Toast[] = [{ id: 0, title: "fox: it runs", isBad: true }];
  for (let id = 1; id < 10; id += 1) all = withToast(all, { id, title: "deleted", isBad: false });
  expect(all.map((toast) => toast.id)).toEqual([0, 7, 8, 9]);
});
