/** Numbers, sizes and times as text. */

const DASH = "–";

export function count(value: number | null | undefined): string {
  return value == null ? DASH : Math.round(value).toLocaleString("en");
}

/** A number with at most `digits` significant digits. */
export function figure(value: number | null | undefined, digits = 4): string {
  if (value == null || !Number.isFinite(value)) return DASH;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(Math.max(0, digits - 2)).replace("e+", "e");
  return value.toLocaleString("en", { maximumSignificantDigits: digits, useGrouping: false });
}

/** A learning rate in short form: 1e-4. */
export function rate(value: number | null | undefined): string {
  if (value == null || !Number.isFinite(value)) return DASH;
  if (value === 0) return "0";
  const [mantissa = "", exponent = ""] = Number(value.toPrecision(3)).toExponential().split("e");
  return `${Number(Number(mantissa).toFixed(2))}e${Number(exponent)}`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds == null || !Number.isFinite(seconds)) return DASH;
  const whole = Math.max(0, Math.round(seconds));
  const days = Math.floor(whole / 86_400);
  const hours = Math.floor(whole / 3600) % 24;
  const minutes = Math.floor(whole / 60) % 60;
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${String(minutes).padStart(2, "0")} m`;
  if (minutes) return `${minutes} m ${String(whole % 60).padStart(2, "0")} s`;
  return `${whole} s`;
}

export function bytes(value: number | null | undefined): string {
  if (value == null) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(size) : size.toFixed(size < 10 ? 1 : 0)} ${units[unit]}`;
}

/** An added share of a step's time: +30%. */
export const slowDown = (share: number) => `+${Math.round(share * 100)}%`;

export const mib = (value: number | null | undefined) => bytes(value == null ? null : value * 2 ** 20);

export function ago(seconds: number, now = Date.now() / 1000): string {
  const past = now - seconds;
  if (past < 45) return "just now";
  if (past < 3600) return `${Math.round(past / 60)} min ago`;
  if (past < 86_400) return `${Math.round(past / 3600)} h ago`;
  if (past < 86_400 * 14) return `${Math.round(past / 86_400)} days ago`;
  // The local day; the locale sv formats it as 2026-11-23.
  return new Date(seconds * 1000).toLocaleDateString("sv");
}

export function moment(seconds: number): string {
  return new Date(seconds * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

export const percent = (share: number) => `${Math.round(share * 100)} %`;

/** The number of parameters: 8.90 B, 1.2 M, 41 k. */
export function params(value: number | null | undefined): string {
  if (value == null) return "";
  if (value >= 1e9) return `${(value / 1e9).toFixed(2)} B`;
  return value >= 1e6 ? `${(value / 1e6).toFixed(1)} M` : `${Math.round(value / 1e3)} k`;
}
