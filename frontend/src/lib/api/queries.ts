import { keepPreviousData, QueryClient, queryOptions } from "@tanstack/react-query";
import { api, isPassing, type RunState, type RunView, type Sample, unwrap } from "./client";

export const ACTIVE: ReadonlySet<RunState> = new Set(["queued", "running", "stopping"]);
export const TERMINAL: ReadonlySet<RunState> = new Set([
  "finished",
  "stopped",
  "failed",
  "interrupted",
  "damaged",
]);

/** True for a training; other runs sample, tag or convert. */
export const isTraining = (run: Pick<RunView, "kind">): boolean => run.kind === "training";

export function makeQueryClient(): QueryClient {
  return new QueryClient({
    defaultOptions: {
      queries: {
        staleTime: 1000,
        refetchOnWindowFocus: true,
        retry: (count, error) => isPassing(error) && count < 3,
        retryDelay: (count) => Math.min(500 * 2 ** count, 5000),
      },
    },
  });
}

export const health = queryOptions({
  queryKey: ["health"],
  queryFn: () => unwrap(api.GET("/api/health")),
  refetchInterval: 15_000,
});

export const system = queryOptions({
  queryKey: ["system"],
  queryFn: () => unwrap(api.GET("/api/system")),
  refetchInterval: 3000,
});

export const queue = queryOptions({
  queryKey: ["queue"],
  queryFn: () => unwrap(api.GET("/api/queue")),
  refetchInterval: 2000,
});

export const trainers = queryOptions({
  queryKey: ["trainers"],
  queryFn: () => unwrap(api.GET("/api/trainers")),
  staleTime: 60_000,
});

export const roots = queryOptions({ queryKey: ["roots"], queryFn: () => unwrap(api.GET("/api/roots")) });

export const secrets = queryOptions({
  queryKey: ["secrets"],
  queryFn: () => unwrap(api.GET("/api/secrets")),
});

export const RUNS_AT_ONCE = 500;

export const runs = (states: RunState[] = [], limit = RUNS_AT_ONCE, skip = 0) =>
  queryOptions({
    queryKey: ["runs", states, limit, skip],
    queryFn: () => unwrap(api.GET("/api/runs", { params: { query: { state: states, limit, skip } } })),
    refetchInterval: 2000,
    placeholderData: keepPreviousData,
  });

export const readRun = (id: string) =>
  unwrap(api.GET("/api/runs/{run_id}", { params: { path: { run_id: id } } }));

export const run = (id: string) =>
  queryOptions({
    queryKey: ["run", id],
    queryFn: () => readRun(id),
    refetchInterval: (query) => (query.state.data && !ACTIVE.has(query.state.data.state) ? 10_000 : 2000),
  });

export const runConfig = (id: string) =>
  queryOptions({
    queryKey: ["run", id, "config"],
    queryFn: () => unwrap(api.GET("/api/runs/{run_id}/config", { params: { path: { run_id: id } } })),
    staleTime: Number.POSITIVE_INFINITY,
  });

export interface Span {
  first: number;
  last: number;
}

export const metrics = (id: string, maxPoints: number, span?: Span) =>
  queryOptions({
    queryKey: ["run", id, "metrics", maxPoints, span ?? null],
    queryFn: () =>
      unwrap(
        api.GET("/api/runs/{run_id}/metrics", {
          params: { path: { run_id: id }, query: { max_points: maxPoints, ...span } },
        }),
      ),
    staleTime: 15_000,
    placeholderData: keepPreviousData,
  });

export const cardLoads = (id: string) =>
  queryOptions({
    queryKey: ["run", id, "gpu-usage"],
    queryFn: () => unwrap(api.GET("/api/runs/{run_id}/gpu-usage", { params: { path: { run_id: id } } })),
    staleTime: 10_000,
  });

const SAMPLE_PAGE = 1000;

export const samples = (id: string) =>
  queryOptions({
    queryKey: ["run", id, "samples"],
    queryFn: async () => {
      const all: Sample[] = [];
      for (;;) {
        const page = await unwrap(
          api.GET("/api/runs/{run_id}/samples", {
            params: { path: { run_id: id }, query: { limit: SAMPLE_PAGE, skip: all.length } },
          }),
        );
        all.push(...page.samples);
        if (all.length >= page.total || page.samples.length === 0) return all;
      }
    },
    staleTime: 30_000,
  });

export const checkpoints = (id: string) =>
  queryOptions({
    queryKey: ["run", id, "checkpoints"],
    queryFn: () => unwrap(api.GET("/api/runs/{run_id}/checkpoints", { params: { path: { run_id: id } } })),
    staleTime: 10_000,
  });

export const compare = (id: string, other: string) =>
  queryOptions({
    queryKey: ["run", id, "compare", other],
    queryFn: () =>
      unwrap(api.GET("/api/runs/{run_id}/compare/{other}", { params: { path: { run_id: id, other } } })),
    staleTime: Number.POSITIVE_INFINITY,
  });

/** The schema, defaults and presets of a trainer's form. */
export const trainerConfig = (trainer: string) =>
  queryOptions({
    queryKey: ["trainer", trainer, "config"],
    queryFn: () => unwrap(api.GET("/api/{trainer}/config", { params: { path: { trainer } } })),
    staleTime: 5 * 60_000,
  });

/** The schema and defaults of a task's form. */
export const taskConfig = (task: string) =>
  queryOptions({
    queryKey: ["task", task, "config"],
    queryFn: () => unwrap(api.GET("/api/tasks/{task}/config", { params: { path: { task } } })),
    staleTime: 5 * 60_000,
  });

/** The trainer or task that a configuration is for. */
export type ConfigOwner = { trainer: string } | { task: string };

/** The problems of a configuration. */
export const checkConfig = (owner: ConfigOwner, config: Record<string, unknown>) =>
  "trainer" in owner
    ? unwrap(api.POST("/api/{trainer}/config", { params: { path: owner }, body: { config } }))
    : unwrap(api.POST("/api/tasks/{task}/config", { params: { path: owner }, body: { config } }));

/** Files in the studio's folders that fit a trainer's model keys, by key. */
export const trainerModels = (trainer: string) =>
  queryOptions({
    queryKey: ["trainer", trainer, "models"],
    queryFn: () => unwrap(api.GET("/api/{trainer}/models", { params: { path: { trainer } } })),
    staleTime: 30_000,
  });
