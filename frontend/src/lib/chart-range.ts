/** Panning and zooming of a chart: spans of steps. */
export type Span = [number, number];

/** Move `span` by a share of its width, within `whole`. */
export function panned(span: Span, share: number, whole: Span): Span {
  const width = span[1] - span[0];
  const first = Math.max(whole[0], Math.min(whole[1] - width, span[0] + share * width));
  return [first, first + width];
}

/** Scale `span` around its middle; null if it covers `whole`. */
export function zoomed(span: Span, factor: number, whole: Span): Span | null {
  const width = Math.max(2, (span[1] - span[0]) * factor);
  if (width >= whole[1] - whole[0]) return null;
  const middle = (span[0] + span[1]) / 2;
  return panned([middle - width / 2, middle + width / 2], 0, whole);
}
