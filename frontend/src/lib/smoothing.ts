/** Exponential smoothing with bias correction, as in Adam; null values are skipped. */
export function smoothed(values: readonly (number | null | undefined)[], weight: number): (number | null)[] {
  let mean = 0;
  let mass = 0;
  return values.map((value) => {
    if (value == null || !Number.isFinite(value)) return mass > 0 ? mean / mass : null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}
