"use client";
import { useMemo, useState } from "react";
import { type Field, isFound, leavesOf } from "@/lib/form-fields";
import { at, same, type Tree } from "@/lib/json";

export const isChanged = (field: Field, whole: Tree, base: Tree) =>
  !same(at(whole, field.path) ?? field.initial ?? null, at(base, field.path) ?? field.initial ?? null);

/** Scroll to a field or section and focus its control. */
function scrollTo(path: string) {
  const row = document.querySelector<HTMLElement>(
    `[data-field="${CSS.escape(path)}"], #section-${CSS.escape(path)}`,
  );
  row?.scrollIntoView({ block: "center" });
  row?.querySelector<HTMLElement>("input,select,textarea,button")?.focus();
}

export interface View {
  /** Search terms, all of which a field's key, title or help contains; none: filter by the detail level. */
  terms: readonly string[];
  isAdvanced: boolean;
  whole: Tree;
  base: Tree;
  problems: ReadonlyMap<string, unknown>;
}

/** The sections and fields that match the search or the detail level; changed and wrong fields always show. */
export function visibleSections(sections: Field[], view: View) {
  const { terms, whole, base, problems } = view;
  const hasSimple = sections.flatMap(leavesOf).some((field) => field.isSimple);
  const showsAll = view.isAdvanced || !hasSimple;
  const matches = (field: Field) => leavesOf(field).some((leaf) => isFound(leaf, terms));
  const isWrong = (field: Field) => {
    const path = field.path.join(".");
    return [...problems.keys()].some((each) => each === path || each.startsWith(`${path}.`));
  };
  const isShown = (field: Field) =>
    terms.length > 0
      ? matches(field)
      : showsAll || field.isSimple || isWrong(field) || isChanged(field, whole, base);
  const isSectionShown = (section: Field) => {
    if (section.kind === "group" && !section.isNullable) return section.fields.some(isShown);
    if (terms.length > 0) return matches(section);
    return showsAll || section.isSimple || section.fields.some(isShown) || isChanged(section, whole, base);
  };
  return { hasSimple, isShown, shown: sections.filter(isSectionShown) };
}

/** The search, the detail level and the sections that they show. */
export function useVisibleSections(sections: Field[], view: Omit<View, "terms" | "isAdvanced">) {
  const [search, setSearch] = useState("");
  const [isAdvanced, setAdvanced] = useState(false);
  const terms = useMemo(() => search.toLowerCase().split(/\s+/).filter(Boolean), [search]);
  return {
    ...visibleSections(sections, { ...view, terms, isAdvanced }),
    search,
    setSearch,
    isAdvanced,
    setAdvanced,
    reveal: (path: string) => {
      setSearch("");
      setAdvanced(true);
      setTimeout(() => scrollTo(path), 60);
    },
  };
}
