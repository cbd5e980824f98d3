"use client";
import { useQuery } from "@tanstack/react-query";
import type { RunView } from "@/lib/api/client";
import { ACTIVE, metrics } from "@/lib/api/queries";
import { smoothed } from "@/lib/smoothing";

const POINTS = 60;

/** A small chart of a run's loss. */
export function LossSparkline({
  run,
  width = 96,
  height = 24,
}: {
  run: RunView;
  width?: number;
  height?: number;
}) {
  const { data } = useQuery({
    ...metrics(run.id, POINTS),
    enabled: (run.step ?? 0) > 1,
    refetchInterval: ACTIVE.has(run.state) ? 10_000 : false,
    staleTime: ACTIVE.has(run.state) ? 8000 : Number.POSITIVE_INFINITY,
  });
  const values = smoothed(data?.series.loss?.mean ?? [], 0.7).filter((value) => value !== null);
  const low = Math.min(...values);
  const spread = Math.max(...values) - low || 1;
  const points = values.map((value, index) => {
    const x = (index / Math.max(1, values.length - 1)) * (width - 2) + 1;
    return `${x.toFixed(1)},${(height - 2 - ((value - low) / spread) * (height - 4)).toFixed(1)}`;
  });
  return (
    <svg width={width} height={height} className="text-primary" role="img" aria-label={`Loss of ${run.id}`}>
      {points.length > 1 && (
        <polyline
          points={points.join(" ")}
          fill="none"
          stroke="currentColor"
          strokeWidth="1.400"
          strokeLinejoin="round"
        />
      )}
    </svg>
  );
}
