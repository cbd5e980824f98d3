import type { Json } from "./json";

export interface Remedy {
  path: string[];
  value: Json;
}

/** The changes in sentences such as `set optimizer.kind to "adamw8bit": then 14.1 GB in all`. */
export function remedies(advice: readonly string[]): Remedy[] {
  return advice.flatMap((sentence) => {
    const [, key, rest] = sentence.match(/^set ([\w.]+) to (.+)$/) ?? [];
    if (!key || rest === undefined) return [];
    // The value is JSON, and may hold colons itself: the longest beginning that reads is meant.
    const ends = [rest.length, ...[...rest.matchAll(/: /g)].map((match) => match.index).reverse()];
    for (const end of ends) {
      try {
        return [{ path: key.split("."), value: JSON.parse(rest.slice(0, end)) as Json }];
      } catch {
        // Not this long.
      }
    }
    return [];
  });
}
