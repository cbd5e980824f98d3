import { at, type Tree } from "./json";

export interface Hint {
  /** The field to change. */
  path: string;
  text: string;
}

const LIMITS = ["max_steps", "max_epochs", "max_minutes"];

/** Return hints on allowed but unusual settings of a complete configuration. */
export function hintsOf(whole: Tree): Hint[] {
  const hints: Hint[] = [];
  if (LIMITS.every((limit) => at(whole, ["limits", limit]) == null)) {
    hints.push({ path: "limits.max_steps", text: "No limit is set: training continues until you stop it." });
  }
  if (at(whole, ["inference"]) == null) {
    hints.push({ path: "inference", text: "No samples are generated: Inference is off." });
  }
  return hints;
}
