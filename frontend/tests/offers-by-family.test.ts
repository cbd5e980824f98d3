import { expect, test } from "vitest";
import { byFamily } from "@/features/models/offers-panel";
import type { Offer } from "@/lib/api/models";

const offer = (id: string, family: string) => ({ id, family }) as Offer;

test("offers are grouped by family, in the order of each family's first one", () => {
  const all = [offer("hd", "Chroma"), offer("klein", "FLUX.2"), offer("base", "Chroma")];
  expect(byFamily(all).map(([family, those]) => [family, those.map((one) => one.id)])).toEqual([
    ["Chroma", ["hd", "base"]],
    ["FLUX.2", ["klein"]],
  ]);
});
