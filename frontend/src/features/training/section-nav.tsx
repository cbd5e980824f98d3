"use client";
import { type Field, leavesOf } from "@/lib/form-fields";
import type { Tree } from "@/lib/json";
import { isChanged } from "./use-visible-sections";

/** Links to the sections, each with its number of errors or changes. */
export function SectionNav({
  sections,
  whole,
  base,
  problems,
}: {
  sections: Field[];
  whole: Tree;
  base: Tree;
  problems: ReadonlyMap<string, unknown>;
}) {
  const numErrors = (section: Field, paths: ReadonlySet<string>) =>
    [...problems.keys()].filter((path) => paths.has(path) || path.split(".")[0] === section.name).length;
  return (
    <nav
      aria-label="Sections"
      className="sticky top-4 hidden max-h-[calc(100dvh-2rem)] overflow-y-auto xl:block"
    >
      <ul className="grid gap-px">
        {sections.map((section) => {
          const fields = leavesOf(section);
          const numChanged = fields.filter((field) => isChanged(field, whole, base)).length;
          const numWrong = numErrors(section, new Set(fields.map((field) => field.path.join("."))));
          return (
            <li key={section.name}>
              <a
                href={`#section-${section.name}`}
                className="flex h-7 items-center justify-between gap-2 rounded px-2 text-xs text-secondary-foreground hover:bg-muted hover:text-foreground"
              >
                <span className="truncate">{section.title}</span>
                {numWrong > 0 ? (
                  <span className="figure text-2xs font-semibold text-warning">
                    {numWrong} error{numWrong > 1 ? "s" : ""}
                  </span>
                ) : (
                  numChanged > 0 && <span className="figure text-2xs text-primary">{numChanged}</span>
                )}
              </a>
            </li>
          );
        })}
      </ul>
    </nav>
  );
}
