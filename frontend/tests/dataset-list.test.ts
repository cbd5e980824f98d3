import { expect, test } from "vitest";
import { type Dataset, datasetEntries } from "@/lib/api/datasets";
import type { Json } from "@/lib/json";
import { withImageDir } from "@/lib/kohya-datasets";

const made = (name: string, kind: Dataset["kind"], source: string | null = null): Dataset => ({
  name,
  kind,
  path: `/data/${name}`,
  url: null,
  images_dir: null,
  is_link: false,
  source,
  storage: {},
});

test("a folder and the JSONLs built from it share one entry", () => {
  const all = [
    made("fox", "folder"),
    made("fox.jsonl", "jsonl", "/data/fox"),
    made("fox-tags.jsonl", "jsonl", "/data/fox"),
    made("given.jsonl", "jsonl"),
    made("gone.jsonl", "jsonl", "/data/gone"),
    made("store", "bucket"),
  ];
  expect(
    datasetEntries(all).map(({ dataset, jsonls }) => [dataset.name, jsonls.map((each) => each.name)]),
  ).toEqual([
    ["fox", ["fox.jsonl", "fox-tags.jsonl"]],
    ["given.jsonl", []],
    ["gone.jsonl", []],
    ["store", []],
  ]);
});

test("Kohya's first subset gets the folder, and nothing else changes", () => {
  expect(withImageDir(undefined, "/data/fox")).toEqual([{ subsets: [{ image_dir: "/data/fox" }] }]);
  const before: Json = [
    { resolution: 768, subsets: [{ image_dir: "/a", num_repeats: 3 }, { image_dir: "/b" }] },
    { resolution: 512 },
  ];
  expect(withImageDir(before, "/data/fox")).toEqual([
    { resolution: 768, subsets: [{ image_dir: "/data/fox", num_repeats: 3 }, { image_dir: "/b" }] },
    { resolution: 512 },
  ]);
});
