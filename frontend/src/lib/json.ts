/** Configurations as trees: paths, merging, differences. */

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type Tree = { [key: string]: Json };

export function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function at(value: Json | undefined, path: readonly (string | number)[]): Json | undefined {
  let current: Json | undefined = value;
  for (const key of path) {
    if (Array.isArray(current)) current = current[Number(key)];
    else if (isTree(current)) current = current[String(key)];
    else return undefined;
  }
  return current;
}

/** A copy of `value` with `next` at `path`; undefined removes the key. */
export function withAt(value: Json, path: readonly (string | number)[], next: Json | undefined): Json {
  const [key, ...rest] = path;
  if (key === undefined) return next ?? null;
  if (Array.isArray(value)) {
    const copy = [...value];
    const index = Number(key);
    if (rest.length === 0 && next === undefined) copy.splice(index, 1);
    else copy[index] = withAt(copy[index] ?? null, rest, next);
    return copy;
  }
  const copy: Tree = isTree(value) ? { ...value } : {};
  if (rest.length === 0 && next === undefined) delete copy[String(key)];
  else copy[String(key)] = withAt(copy[String(key)] ?? {}, rest, next);
  return copy;
}

/** Deep equality. */
export function same(a: Json | undefined, b: Json | undefined): boolean {
  if (a === b) return true;
  if (Array.isArray(a) && Array.isArray(b)) {
    return a.length === b.length && a.every((item, index) => same(item, b[index]));
  }
  if (isTree(a) && isTree(b)) {
    const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
    return [...keys].every((key) => same(a[key], b[key]));
  }
  return false;
}

/** Merge `over` into `base` recursively; a section whose `kind` changes replaces the old one. */
export function laidOver(base: Json, over: Json): Json {
  if (!isTree(base) || !isTree(over)) return over;
  if (typeof over.kind === "string" && over.kind !== base.kind) return over;
  const merged: Tree = { ...base };
  for (const [key, value] of Object.entries(over)) {
    const existing = merged[key];
    merged[key] = existing === undefined ? value : laidOver(existing, value);
  }
  return merged;
}

/** The smallest configuration that gives `value` when merged into `base`. */
export function changesFrom(base: Json | undefined, value: Json): Json | undefined {
  if (same(base, value)) return undefined;
  if (!isTree(base) || !isTree(value)) return value;
  const kindChanged = value.kind !== undefined && value.kind !== base.kind;
  const changes: Tree = {};
  for (const [key, item] of Object.entries(value)) {
    const change = kindChanged ? item : changesFrom(base[key], item);
    if (change !== undefined) changes[key] = change;
  }
  if (value.kind !== undefined && Object.keys(changes).length > 0) changes.kind = value.kind;
  return Object.keys(changes).length > 0 ? changes : undefined;
}

export interface Difference {
  path: string;
  from: Json | undefined;
  to: Json | undefined;
}

/** The leaves in which two trees differ. */
export function differences(from: Json | undefined, to: Json | undefined, path = ""): Difference[] {
  if (same(from, to)) return [];
  if (isTree(from) && isTree(to)) {
    const keys = [...new Set([...Object.keys(from), ...Object.keys(to)])];
    return keys.flatMap((key) => differences(from[key], to[key], path ? `${path}.${key}` : key));
  }
  return [{ path, from, to }];
}

export function shown(value: Json | undefined): string {
  if (value === undefined) return "–";
  if (typeof value === "string") return value === "" ? '""' : value;
  return JSON.stringify(value);
}

/** `/config/training/lr` as ["config", "training", "lr"]. */
export function pointed(pointer: string): string[] {
  return pointer
    .split("/")
    .slice(1)
    .map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
}
