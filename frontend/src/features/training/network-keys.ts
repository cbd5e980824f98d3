import { at, type Tree } from "@/lib/json";

export type Key = readonly string[];

/** FLOW's key for Chroma, then the key for any family, which replaces it. */
export const FLOW_NETWORK: readonly Key[] = [
  ["model", "chroma_path"],
  ["model", "path"],
];

const textAt = (whole: Tree, key: Key) => String(at(whole, key) ?? "");

/** The path of the network: the value of the last key that is set. */
export function networkPath(whole: Tree, keys: readonly Key[]): string {
  return keys.map((key) => textAt(whole, key)).findLast(Boolean) ?? "";
}

/** The candidates of all keys, each once. */
export function networkPaths(keys: readonly Key[], candidates: Record<string, string[]>): string[] {
  return [...new Set(keys.flatMap((key) => candidates[key.join(".")] ?? []))];
}

/** The values that choose the network at `path`: the first key that it fits, and nothing in the others. */
export function networkValues(
  path: string,
  keys: readonly Key[],
  candidates: Record<string, string[]>,
  whole: Tree,
): [Key, string][] {
  const chosen = keys.find((key) => candidates[key.join(".")]?.includes(path) || textAt(whole, key) === path);
  return keys.map((key) => [key, key === chosen ? path : ""]);
}
