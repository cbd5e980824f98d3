/** Moving over a chart: stretches of steps within the whole. */
export type Span = [number, number];

/** `span` moved by a share of its width, and no further than the whole goes. */
export function moved(span: Span, share: number, whole: Span): Span {
  const width = span[1] - span[0];
  const first = Math.max(whole[0], Math.min(whole[1] - width, span[0] + share * width));
  return [first, first + width];
}

/** `span` about its middle, wider or narrower; null where that is all there is. */
export function zoomed(span: Span, factor: number, whole: Span): Span | null {
  const width = Math.max(2, (span[1] - span[0]) * factor);
  if (width >= whole[1] - whole[0]) return null;
  const middle = (span[0] + span[1]) / 2;
  return moved([middle - width / 2, middle + width / 2], 0, whole);
}
