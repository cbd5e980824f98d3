import { describe, expect, test } from "vitest";
import { loadLines } from "@/lib/gpu-usage";

const curves = (load: (number | null)[]) => ({
  load_percent: load,
  memory_used_mib: load.map((value) => (value === null ? null : value * 1024)),
  temperature_c: load,
  power_w: load.map(() => null),
});

describe("GPU usage over time", () => {
  test("is a line for each GPU, in seconds since the run was created", () => {
    const loads = {
      times: [110, 120, 130],
      gpus: { "cuda:0": curves([1, 2, 3]), "cuda:1": curves([4, 5, 6]) },
    };
    const found = loadLines(loads, "memory_used_mib", 100, 1024);
    expect(found.seconds).toEqual([10, 20, 30]);
    expect(found.lines).toEqual([
      { device: "cuda:0", values: [1, 2, 3] },
      { device: "cuda:1", values: [4, 5, 6] },
    ]);
  });

  test("has no line for values that no driver reports", () => {
    const loads = { times: [110], gpus: { "cuda:0": curves([1]) } };
    expect(loadLines(loads, "power_w", 100).lines).toEqual([]);
  });

  test("breaks where the run paused", () => {
    const times = [110, 120, 130, 9000, 9010];
    const found = loadLines({ times, gpus: { "cuda:0": curves([1, 2, 3, 4, 5]) } }, "load_percent", 100);
    expect(found.seconds).toEqual([10, 20, 30, 40, 8900, 8910]);
    expect(found.lines[0]?.values).toEqual([1, 2, 3, null, 4, 5]);
  });
});
