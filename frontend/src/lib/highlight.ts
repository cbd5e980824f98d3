/** Where words stand in a text. */

export interface Hit {
  at: number;
  length: number;
}

/** Every place of `words`, whatever their case; none of nothing. */
export function findAll(text: string, words: string): Hit[] {
  if (!words) return [];
  const pattern = new RegExp(words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
  return Array.from(text.matchAll(pattern), (found) => ({ at: found.index, length: found[0].length }));
}

/** The place before or after, round the ends. */
export const turned = (now: number, by: number, many: number): number =>
  many === 0 ? 0 : (((now + by) % many) + many) % many;

export interface Piece {
  text: string;
  /** Which hit it is; null: none. */
  hit: number | null;
}

/** A text cut at its hits; of thousands only those near `now`, which are all that is seen. */
export function pieces(text: string, hits: readonly Hit[], now: number, most = 400): Piece[] {
  const first = Math.max(0, now - most / 2);
  const found: Piece[] = [];
  let end = 0;
  hits.slice(first, first + most).forEach(({ at, length }, index) => {
    if (at > end) found.push({ text: text.slice(end, at), hit: null });
    found.push({ text: text.slice(at, at + length), hit: first + index });
    end = at + length;
  });
  if (end < text.length) found.push({ text: text.slice(end), hit: null });
  return found;
}
