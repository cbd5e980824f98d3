import type { Edit, EditOperation, EditStage } from "@/lib/api/datasets";
import { count } from "@/lib/format";

export const OPERATIONS = {
  add: "Add tags",
  remove: "Remove tags",
  replace: "Replace a tag",
  replace_text: "Replace text",
  set: "Set the caption",
} as const;
export type OperationKind = keyof typeof OPERATIONS;

const tagsOf = (text: string) =>
  text
    .split(",")
    .map((tag) => tag.trim())
    .filter(Boolean);

export function operationOf(
  kind: OperationKind,
  first: string,
  second: string,
  where: "start" | "end",
): EditOperation {
  if (kind === "add") return { kind, tags: tagsOf(first), where };
  if (kind === "remove") return { kind, tags: tagsOf(first) };
  if (kind === "replace") return { kind, tag: first.trim(), by: second.trim() };
  if (kind === "replace_text") return { kind, text: first, by: second };
  return { kind, text: first };
}

/** The progress of an edit, as text. */
export function stageText(stage: EditStage): string {
  if (stage.num_total === 0) return "Scanning the folder …";
  const done = `${count(stage.num_done)} of ${count(stage.num_total)} captions`;
  return stage.phase === "writing" ? `${done} written` : `${done} backed up for undo`;
}

/** The result of an edit or an undo, as a toast's title and detail. */
export function outcomeText(edit: Edit): [string, string?] {
  const changed = count(edit.num_changed);
  if (!edit.is_whole) return [`Cancelled after changing ${changed} captions.`, "Undo restores them."];
  if (edit.undoes) return [`${changed} captions restored.`];
  return [`${changed} captions changed.`, "You can undo this here."];
}
