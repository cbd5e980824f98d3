import { expect, test } from "vitest";
import { sourceOf } from "@/features/datasets/dataset-source";

test("a source is a folder, a bucket, a URL or a dataset of the Hub", () => {
  expect(sourceOf("  ")).toEqual({ kind: "none" });
  expect(sourceOf("/srv/fox")).toEqual({ kind: "folder", path: "/srv/fox" });
  expect(sourceOf("s3://bucket/fox")).toEqual({ kind: "bucket", url: "s3://bucket/fox" });
  expect(sourceOf(" https://example.org/fox.zip ")).toEqual({
    kind: "web",
    url: "https://example.org/fox.zip",
  });
  const whole = { kind: "hub", repo: "me/fox-2.0", revision: "main", below: "" };
  for (const place of [
    "https://huggingface.co/datasets/me/fox-2.0",
    "https://huggingface.co/datasets/me/fox-2.0/?row=1",
    "hf://datasets/me/fox-2.0",
    "hf://me/fox-2.0/",
  ]) {
    expect(sourceOf(place)).toEqual(whole);
  }
  expect(sourceOf("https://huggingface.co/datasets/me/fox/tree/v1%2E0/train/a%20b")).toEqual({
    kind: "hub",
    repo: "me/fox",
    revision: "v1.0",
    below: "train/a b",
  });
  // A file in a dataset's repository is a file.
  const file = "https://huggingface.co/datasets/me/fox/resolve/main/fox.zip";
  expect(sourceOf(file)).toEqual({ kind: "web", url: file });
});
