"use client";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useToasts } from "@/components/ui/toasts";
import { api, type RunView, unwrap } from "@/lib/api/client";

const at = (id: string) => ({ params: { path: { run_id: id } } });

/** The actions on a run, one request each. */
export const RUN_ACTIONS = {
  stop: {
    message: "saving and stopping.",
    send: (id: string) => unwrap(api.POST("/api/runs/{run_id}/stop", at(id))),
  },
  kill: { message: "stopped.", send: (id: string) => unwrap(api.POST("/api/runs/{run_id}/kill", at(id))) },
  save: {
    message: "saving at the next step.",
    send: (id: string) =>
      unwrap(
        api.POST("/api/runs/{run_id}/control", {
          params: { path: { run_id: id } },
          body: { action: "checkpoint" },
        }),
      ),
  },
  sample: {
    message: "sampling at the next step.",
    send: (id: string) =>
      unwrap(
        api.POST("/api/runs/{run_id}/control", {
          params: { path: { run_id: id } },
          body: { action: "sample" },
        }),
      ),
  },
  resume: {
    message: "queued: resumes when the device is free.",
    send: (id: string) => unwrap(api.POST("/api/runs/{run_id}/resume", { ...at(id), body: {} })),
  },
  cancel: {
    message: "removed from the queue.",
    send: (id: string) => unwrap(api.POST("/api/runs/{run_id}/cancel", at(id))),
  },
  delete: { message: "deleted.", send: (id: string) => unwrap(api.DELETE("/api/runs/{run_id}", at(id))) },
} as const;

export type Action = keyof typeof RUN_ACTIONS;

export function useRunAction() {
  const client = useQueryClient();
  const { notify, notifyError } = useToasts();
  return useMutation({
    mutationFn: async ({ action, id }: { action: Action; id: string }): Promise<RunView | undefined> =>
      (await RUN_ACTIONS[action].send(id)) as RunView | undefined,
    onSuccess: (view, { action, id }) => {
      if (view) client.setQueryData(["run", id], view);
      notify(`${id}: ${RUN_ACTIONS[action].message}`);
    },
    onError: notifyError,
    onSettled: (_data, _error, { id }) => {
      void client.invalidateQueries({ queryKey: ["runs"] });
      void client.invalidateQueries({ queryKey: ["queue"] });
      void client.invalidateQueries({ queryKey: ["run", id], exact: true });
    },
  });
}
