import type { Sample } from "@/lib/api/client";

const USUAL_RATE = 16;

/** The frame rate of a generated clip. */
export const framesPerSecond = (sample: Pick<Sample, "settings">) =>
  Number(sample.settings?.fps) || USUAL_RATE;

/** The time of the frame that is `steps` frames from the one at `time`: its middle, because its start may be rounded to the frame before. */
export function frameTime(time: number, steps: number, rate: number, duration: number): number {
  const last = Math.max(0, Math.round(duration * rate) - 1);
  const frame = Math.min(last, Math.max(0, Math.floor(time * rate + 1e-3) + steps));
  return (frame + 0.5) / rate;
}
