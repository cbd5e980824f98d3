"use client";
import { useQuery } from "@tanstack/react-query";
import { Panel, Skeleton } from "@/components/ui/panel";
import { api, unwrap } from "@/lib/api/client";
import { roots, trainers } from "@/lib/api/queries";

export function Folders() {
  const { data } = useQuery(roots);
  return (
    <Panel title="Folders" flush>
      <p className="border-b px-4 py-2.5 text-sm text-secondary-foreground">
        The studio reads and writes only in these folders. Add one with{" "}
        <code className="figure text-xs">flowloom up --root NAME=DIR</code>.
      </p>
      {!data ? (
        <div className="p-4">
          <Skeleton className="h-24" />
        </div>
      ) : (
        <ul className="divide-y">
          {data.map((root) => (
            <li key={root.name} className="flex flex-wrap items-baseline justify-between gap-x-4 px-4 py-2">
              <span className="text-sm font-medium">{root.name}</span>
              <code className="figure min-w-0 text-xs text-secondary-foreground [overflow-wrap:anywhere]">
                {root.path}
                {!root.exists && <span className="text-muted-foreground"> (does not exist yet)</span>}
              </code>
            </li>
          ))}
        </ul>
      )}
    </Panel>
  );
}

export function Trainers() {
  const { data } = useQuery(trainers);
  const { data: tasks } = useQuery({
    queryKey: ["tasks"],
    queryFn: () => unwrap(api.GET("/api/tasks")),
    retry: false,
  });
  return (
    <Panel title="Trainers and tasks" flush>
      <ul className="divide-y">
        {data?.map((trainer) => (
          <li key={trainer.name} className="px-4 py-2">
            <p className="text-sm font-medium">
              {trainer.title} <code className="figure text-xs text-muted-foreground">{trainer.name}</code>
            </p>
            <p className="text-xs text-secondary-foreground">
              {trainer.supported_controls.length > 0
                ? `Controls while running: ${trainer.supported_controls.join(", ")}.`
                : "Cannot be controlled while running."}
            </p>
          </li>
        ))}
        {tasks && tasks.length > 0 && (
          <li className="px-4 py-2 text-xs text-secondary-foreground">
            {tasks.map((task) => task.title).join(" · ")}
          </li>
        )}
      </ul>
    </Panel>
  );
}
