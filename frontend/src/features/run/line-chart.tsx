"use client";
import { type KeyboardEvent, useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { panned, type Span, zoomed } from "@/lib/chart-range";
import { figure } from "@/lib/format";

export interface ChartLine {
  label: string;
  /** A colour token such as chart-1. */
  colour: string;
  values: (number | null)[];
  width?: number;
  alpha?: number;
  /** Draw a dot at each point. */
  hasDots?: boolean;
}

interface Props {
  label: string;
  steps: number[];
  /** `steps` are seconds since the run was created. */
  isTime?: boolean;
  lines: ChartLine[];
  height: number;
  isLog?: boolean;
  /** The visible steps; null: all. */
  span?: Span | null;
  onSpan?: (span: Span | null) => void;
  /** The first and last step of the run, if `steps` is a part of it. */
  whole?: Span;
  onPoint?: (index: number | null) => void;
}

/** 950,000 as 950K, which fits narrow charts. */
const STEPS = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
/** Tick distances in whole steps. */
const STEP_GAPS = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat();
const TIME_GAPS = [1, 2, 5, 10, 15, 30, 60, 120, 240, 480, 1440, 2880, 10_080].map((each) => 60 * each);
const elapsed = (seconds: number) =>
  seconds < 3600
    ? `${seconds / 60} min`
    : `${Math.floor(seconds / 3600)}:${String(Math.floor(seconds / 60) % 60).padStart(2, "0")} h`;
/** Axis font size in rem, so that it scales with the page. */
const AXIS_REM = 0.6875;
const AXIS_GAP_REM = { below: 1.625, beside: 3.5, right: 1 };

function token(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function withAlpha(colour: string, alpha: number): string {
  return alpha >= 1 ? colour : colour.replace(/\)$/, ` / ${alpha})`);
}

function createPlot(container: HTMLElement, props: () => Props): uPlot {
  const { lines, height, isLog, isTime } = props();
  const rem = Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
  const font = `${AXIS_REM * rem}px ${getComputedStyle(document.body).fontFamily}`;
  const axis: uPlot.Axis = {
    stroke: token("muted-foreground"),
    font,
    grid: { stroke: token("border"), width: 1 },
    ticks: { show: false },
    gap: 4,
  };
  return new uPlot(
    {
      width: Math.max(200, container.clientWidth),
      height,
      padding: [8, AXIS_GAP_REM.right * rem, 0, 0],
      legend: { show: false },
      cursor: {
        drag: { x: true, y: false, uni: 20 },
        points: { size: 6 },
        focus: { prox: -1 },
      },
      scales: {
        x: { time: false },
        y: isLog ? { distr: 3, log: 10 } : { range: (_, low, high) => uPlot.rangeNum(low, high, 0.08, true) },
      },
      axes: [
        {
          ...axis,
          size: AXIS_GAP_REM.below * rem,
          incrs: isTime ? TIME_GAPS : STEP_GAPS,
          values: (_, ticks) => ticks.map((tick) => (isTime ? elapsed(tick) : STEPS.format(tick))),
        },
        {
          ...axis,
          size: AXIS_GAP_REM.beside * rem,
          values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : figure(tick, 3))),
        },
      ],
      series: [
        {},
        ...lines.map((line) => ({
          label: line.label,
          stroke: withAlpha(token(line.colour), line.alpha ?? 1),
          width: line.width ?? 1.5,
          points: { show: line.hasDots === true, size: 5 },
          spanGaps: !isTime,
        })),
      ],
      hooks: {
        setSelect: [
          (plot) => {
            const { left, width } = plot.select;
            if (width < 5) return;
            props().onSpan?.([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
            plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          },
        ],
        setCursor: [(plot) => props().onPoint?.(plot.cursor.idx ?? null)],
      },
    },
    [props().steps, ...lines.map((line) => line.values)] as uPlot.AlignedData,
    container,
  );
}

const PAN_DELAY_MS = 150;
const KEYS: Record<string, (span: Span, whole: Span) => Span | null> = {
  ArrowLeft: (span, whole) => panned(span, -0.25, whole),
  ArrowRight: (span, whole) => panned(span, 0.25, whole),
  "+": (span, whole) => zoomed(span, 0.5, whole),
  "-": (span, whole) => zoomed(span, 2, whole),
  Home: () => null,
};

/** Pan sideways by wheel or touchpad. The plot moves at once; `onSpan` is called when it rests. Returns a clean-up. */
function panByWheel(element: HTMLElement, plot: () => uPlot | null, props: () => Props): () => void {
  let settle: ReturnType<typeof setTimeout> | undefined;
  const onWheel = (event: WheelEvent) => {
    const by = event.deltaX || (event.shiftKey ? event.deltaY : 0);
    const { onSpan, span, steps, whole } = props();
    const { min, max } = plot()?.scales.x ?? {};
    if (!by || !onSpan || !span || min == null || max == null) return;
    event.preventDefault();
    const bounds = whole ?? [steps[0] ?? min, steps[steps.length - 1] ?? max];
    const next = panned([min, max], by / element.clientWidth, bounds);
    plot()?.setScale("x", { min: next[0], max: next[1] });
    clearTimeout(settle);
    settle = setTimeout(() => onSpan(next), PAN_DELAY_MS);
  };
  element.addEventListener("wheel", onWheel, { passive: false });
  return () => {
    clearTimeout(settle);
    element.removeEventListener("wheel", onWheel);
  };
}

/** Curves over steps or time. Drag to zoom, scroll sideways to pan, double-click to reset; keys do the same. */
export function LineChart(props: Props) {
  const container = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const { steps, lines, height, isLog, span } = props;
  const shape = lines.map((line) => `${line.label}/${line.colour}/${line.alpha}/${line.width}`).join("|");

  // biome-ignore lint/correctness/useExhaustiveDependencies: the chart is rebuilt when its shape changes
  useEffect(() => {
    const element = container.current;
    if (!element) return;
    const build = () => {
      plot.current?.destroy();
      plot.current = createPlot(element, () => latest.current);
      applySpan(plot.current, latest.current.span);
    };
    build();
    const resetZoom = () => latest.current.onSpan?.(null);
    element.addEventListener("dblclick", resetZoom);
    window.addEventListener("flowloom:theme", build);
    const observer = new ResizeObserver(() =>
      plot.current?.setSize({ width: Math.max(200, element.clientWidth), height }),
    );
    observer.observe(element);
    const endPan = panByWheel(
      element,
      () => plot.current,
      () => latest.current,
    );
    return () => {
      endPan();
      observer.disconnect();
      element.removeEventListener("dblclick", resetZoom);
      window.removeEventListener("flowloom:theme", build);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape, height, isLog]);

  useEffect(() => {
    if (!plot.current) return;
    plot.current.setData([steps, ...lines.map((line) => line.values)] as uPlot.AlignedData, true);
    applySpan(plot.current, span);
  }, [steps, lines, span]);

  const onKey = (event: KeyboardEvent) => {
    const key = KEYS[event.key];
    const whole = props.whole ?? [steps[0] ?? 0, steps[steps.length - 1] ?? 0];
    if (!key || !props.onSpan) return;
    event.preventDefault();
    props.onSpan(key(span ?? whole, whole));
  };
  return (
    <div
      ref={container}
      role="group"
      aria-label={props.label}
      tabIndex={props.onSpan ? 0 : undefined}
      onKeyDown={onKey}
      style={{ height }}
      className="min-w-0 overflow-hidden"
    />
  );
}

function applySpan(plot: uPlot, span: [number, number] | null | undefined) {
  if (span) plot.setScale("x", { min: span[0], max: span[1] });
}
