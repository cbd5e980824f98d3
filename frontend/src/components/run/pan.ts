import type uPlot from "uplot";

type Span = [number, number];

interface Held {
  /** Steps that are shown; null: all, so that there is nowhere to go. */
  span?: Span | null;
  /** Steps that there are. */
  extent?: Span;
  onSpan?: (span: Span | null) => void;
}

/** `span` further on by `steps`, but never beyond what there is; its width stays. */
export function moved([first, last]: Span, steps: number, [least, most]: Span): Span {
  const by = Math.min(Math.max(steps, least - first), Math.max(most - last, least - first));
  return [first + by, last + by];
}

/** Lets a sideways wheel (two fingers, or Shift with a wheel) move the steps that are shown; call it to end that. */
export function panByWheel(box: HTMLElement, plot: () => uPlot | null, held: () => Held): () => void {
  const onWheel = (event: WheelEvent) => {
    const { span, extent, onSpan } = held();
    const pixels = event.shiftKey && event.deltaX === 0 ? event.deltaY : event.deltaX;
    const width = plot()?.over.clientWidth;
    if (!span || !extent || !onSpan || !width || Math.abs(pixels) < Math.abs(event.deltaY)) return;
    event.preventDefault();
    onSpan(moved(span, (pixels / width) * (span[1] - span[0]), extent));
  };
  box.addEventListener("wheel", onWheel, { passive: false });
  return () => box.removeEventListener("wheel", onWheel);
}
