import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { type View, visibleSections } from "@/features/training/use-visible-sections";
import { sectionsOf } from "@/lib/form-fields";
import type { Tree } from "@/lib/json";

const golden = new URL("../../tests/golden/schema.json", import.meta.url);
const sections = sectionsOf(JSON.parse(readFileSync(golden, "utf8")) as Tree);
const simple: View = { terms: [], isAdvanced: false, whole: {}, base: {}, problems: new Map() };

function shownIn(view: Partial<View>): string[] {
  const { shown, isShown } = visibleSections(sections, { ...simple, ...view });
  return shown.flatMap((section) => section.fields.filter(isShown).map((field) => field.path.join(".")));
}

test("the simple form shows only the fields that the schema marks as simple", () => {
  const isSimple = sections.flatMap((section) => section.fields.filter((field) => field.isSimple));
  expect(shownIn({})).toEqual(isSimple.map((field) => field.path.join(".")));
  expect(shownIn({})).toContain("training.lr");
  expect(shownIn({})).not.toContain("training.weight_decay");
});

test("the advanced form shows every field", () => {
  const all = sections.flatMap((section) => section.fields.map((field) => field.path.join(".")));
  expect(shownIn({ isAdvanced: true })).toEqual(all);
});

test("changed and wrong fields show in the simple form too", () => {
  const shown = shownIn({
    whole: { training: { weight_decay: 0.1 } },
    base: { training: { weight_decay: 0 } },
    problems: new Map([["dataloader.offset", []]]),
  });
  expect(shown).toEqual(expect.arrayContaining(["training.weight_decay", "dataloader.offset"]));
  expect(shown).not.toContain("training.cache_minibatch");
});

test("a search shows all matching fields", () => {
  expect(shownIn({ terms: ["weight", "decay"] })).toEqual(["training.weight_decay"]);
});
