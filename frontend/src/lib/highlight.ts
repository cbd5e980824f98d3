/** Matches of a search in a text. */

export interface Hit {
  at: number;
  length: number;
}

/** All matches of `query`, ignoring case; none for an empty search. */
export function findAll(text: string, query: string): Hit[] {
  if (!query) return [];
  const pattern = new RegExp(query.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
  return Array.from(text.matchAll(pattern), (match) => ({ at: match.index, length: match[0].length }));
}

/** The index `by` further, wrapping around at the ends. */
export const wrapIndex = (now: number, by: number, many: number): number =>
  many === 0 ? 0 : (((now + by) % many) + many) % many;

export interface Segment {
  text: string;
  /** The index of the match; null for text between matches. */
  hit: number | null;
}

/** Split a text at its matches; of thousands, only those near `now`, the visible ones. */
export function segments(text: string, hits: readonly Hit[], now: number, most = 400): Segment[] {
  const first = Math.max(0, now - most / 2);
  const parts: Segment[] = [];
  let end = 0;
  hits.slice(first, first + most).forEach(({ at, length }, index) => {
    if (at > end) parts.push({ text: text.slice(end, at), hit: null });
    parts.push({ text: text.slice(at, at + length), hit: first + index });
    end = at + length;
  });
  if (end < text.length) parts.push({ text: text.slice(end), hit: null });
  return parts;
}
