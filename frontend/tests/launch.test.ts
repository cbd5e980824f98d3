import { expect, test } from "vitest";
import { activityOf, clusterOf, launchOf, ONE_MACHINE, optionsProblem, toggled } from "@/lib/launch";

const GPU = { device: "slurm:gpu", title: "Slurm: gpu partition", options: ["account", "time"] };
const clusters = [GPU, { device: "ray:http://head:8265", title: "Ray: http://head:8265", options: ["wait"] }];

test("a cluster excludes every other device, and a device of this machine excludes clusters", () => {
  expect(toggled(["cuda:0", "cuda:1"], "slurm:gpu", clusters)).toEqual(["slurm:gpu"]);
  expect(toggled(["slurm:gpu"], "ray:http://head:8265", clusters)).toEqual(["ray:http://head:8265"]);
  expect(toggled(["slurm:gpu"], "cuda:0", clusters)).toEqual(["cuda:0"]);
  expect(toggled(["cuda:0"], "cuda:1", clusters)).toEqual(["cuda:0", "cuda:1"]);
  expect(toggled(["slurm:gpu"], "slurm:gpu", clusters)).toEqual([]);
});

test("machines are sent with a cluster only", () => {
  const fields = { nodes: 4, gpus: 8, options: " time=12:00:00  account=a=b " };
  expect(launchOf(fields, clusterOf(["slurm:gpu"], clusters))).toEqual({
    nodes: 4,
    gpus: 8,
    options: { time: "12:00:00", account: "a=b" },
  });
  expect(launchOf(fields, clusterOf(["cuda:0"], clusters))).toBeNull();
  expect(launchOf(ONE_MACHINE, GPU)).toEqual({ nodes: 1, gpus: 0, options: {} });
});

test.each([
  ["", null],
  ["time=1:00", null],
  ["time", "Write time=VALUE."],
  ["time=1:00 output=/x", "output cannot be set here. Allowed: account, time."],
])("options %j", (text, problem) => expect(optionsProblem(text, GPU.options)).toBe(problem));

test("a waiting job is shown in the cluster's words", () => {
  const job = { launcher: "slurm", job_id: "12", state: "pending" as const, detail: "PENDING (Resources)" };
  expect(activityOf({ phase: "pending", job })).toBe("slurm job 12: PENDING (Resources)");
  expect(activityOf({ phase: "training", job: { ...job, state: "running" } })).toBe("training");
  expect(activityOf({ phase: null, job: null })).toBeNull();
});
