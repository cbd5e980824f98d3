import { isTree, type Json, type Tree } from "./json";
import { type LaunchFields, ONE_MACHINE } from "./launch";

/** A form's values that differ from the defaults. They survive a reload and navigation. */
export interface Draft {
  name: string;
  preset: string | null;
  devices: string[];
  launch: LaunchFields;
  config: Tree;
}

export const EMPTY_DRAFT: Draft = { name: "", preset: null, devices: [], launch: ONE_MACHINE, config: {} };
const SECRET = /^(wandb_key|.*_token|.*(secret|password|api_key).*)$/i;

const keyOf = (trainer: string) => `flowloom.draft.${trainer}`;

/** Return this tab's draft; a new tab starts with the latest draft of all tabs. */
export function loadDraft(trainer: string): Draft {
  try {
    const text = sessionStorage.getItem(keyOf(trainer)) ?? localStorage.getItem(keyOf(trainer));
    const saved: unknown = JSON.parse(text ?? "null");
    return isTree(saved) && isTree(saved.config)
      ? { ...EMPTY_DRAFT, ...(saved as unknown as Draft) }
      : EMPTY_DRAFT;
  } catch {
    return EMPTY_DRAFT;
  }
}

/** Save the draft for this tab, safe from other tabs, and for the next visit. */
export function saveDraft(trainer: string, draft: Draft): void {
  const text = JSON.stringify({ ...draft, config: withoutSecrets(draft.config).config });
  try {
    sessionStorage.setItem(keyOf(trainer), text);
    localStorage.setItem(keyOf(trainer), text);
  } catch {
    // The storage is full or blocked: the form works without a saved draft.
  }
}

/** Return a configuration without its tokens, and the tokens' paths. Tokens belong in the studio's secrets. */
export function withoutSecrets(config: Tree): { config: Tree; removed: string[] } {
  const removed: string[] = [];
  const clean = (value: Json, path: string): Json => {
    if (Array.isArray(value)) return value.map((item, index) => clean(item, `${path}.${index}`));
    if (!isTree(value)) return value;
    const kept: Tree = {};
    for (const [key, item] of Object.entries(value)) {
      const dotted = path ? `${path}.${key}` : key;
      if (SECRET.test(key) && typeof item === "string" && item !== "") removed.push(dotted);
      else kept[key] = clean(item, dotted);
    }
    return kept;
  };
  return { config: clean(config, "") as Tree, removed };
}
