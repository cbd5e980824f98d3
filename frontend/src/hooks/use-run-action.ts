"use client";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useToasts } from "@/components/ui/toasts";
import { api, got, type RunView } from "@/lib/api/client";

const at = (id: string) => ({ params: { path: { run_id: id } } });

/** The actions on a run, one request each. */
export const RUN_ACTIONS = {
  stop: {
    said: "saving and stopping.",
    ask: (id: string) => got(api.POST("/api/runs/{run_id}/stop", at(id))),
  },
  kill: { said: "stopped.", ask: (id: string) => got(api.POST("/api/runs/{run_id}/kill", at(id))) },
  save: {
    said: "saving at the next step.",
    ask: (id: string) =>
      got(
        api.POST("/api/runs/{run_id}/control", {
          params: { path: { run_id: id } },
          body: { action: "checkpoint" },
        }),
      ),
  },
  sample: {
    said: "sampling at the next step.",
    ask: (id: string) =>
      got(
        api.POST("/api/runs/{run_id}/control", {
          params: { path: { run_id: id } },
          body: { action: "sample" },
        }),
      ),
  },
  resume: {
    said: "queued: resumes when the device is free.",
    ask: (id: string) => got(api.POST("/api/runs/{run_id}/resume", { ...at(id), body: {} })),
  },
  cancel: {
    said: "removed from the queue.",
    ask: (id: string) => got(api.POST("/api/runs/{run_id}/cancel", at(id))),
  },
  delete: { said: "deleted.", ask: (id: string) => got(api.DELETE("/api/runs/{run_id}", at(id))) },
} as const;

export type Action = keyof typeof RUN_ACTIONS;

export function useRunAction() {
  const client = useQueryClient();
  const { notify, notifyError } = useToasts();
  return useMutation({
    mutationFn: async ({ action, id }: { action: Action; id: string }): Promise<RunView | undefined> =>
      (await RUN_ACTIONS[action].ask(id)) as RunView | undefined,
    onSuccess: (view, { action, id }) => {
      if (view) client.setQueryData(["run", id], view);
      notify(`${id}: ${RUN_ACTIONS[action].said}`);
    },
    onError: notifyError,
    onSettled: (_data, _error, { id }) => {
      void client.invalidateQueries({ queryKey: ["runs"] });
      void client.invalidateQueries({ queryKey: ["queue"] });
      void client.invalidateQueries({ queryKey: ["run", id], exact: true });
    },
  });
}
