"use client";
import { useQuery } from "@tanstack/react-query";
import Link from "next/link";
import { Panel } from "@/components/ui/panel";
import { runHref } from "@/features/run/run-progress";
import { api, unwrap } from "@/lib/api/client";
import { isTraining, runs } from "@/lib/api/queries";
import { count } from "@/lib/format";

const SHOWN = 12;

/** The latest samples of the newest run that has some. */
export function LatestSamples() {
  const { data: all } = useQuery(runs([], 50));
  const newest = all?.runs.find(
    (run) => (isTraining(run) || run.trainer === "sample") && (run.step ?? 0) > 0,
  );
  const { data } = useQuery({
    queryKey: ["run", newest?.id, "samples", "latest"],
    queryFn: () =>
      unwrap(
        api.GET("/api/runs/{run_id}/samples", {
          params: { path: { run_id: newest?.id ?? "" }, query: { limit: SHOWN } },
        }),
      ),
    enabled: newest !== undefined,
    refetchInterval: 10_000,
  });
  if (!newest || !data || data.samples.length === 0) return null;
  return (
    <Panel title="Latest samples">
      <ul className="grid grid-cols-4 gap-2 sm:grid-cols-6">
        {data.samples.map((sample) => (
          <li key={sample.file}>
            <Link
              href={runHref(newest.id)}
              title={sample.prompt ?? ""}
              className="block overflow-hidden rounded border bg-muted"
            >
              <img
                src={`${sample.url}?size=256`}
                alt={`${sample.prompt ?? "sample"}, step ${count(sample.step)}`}
                loading="lazy"
                className="aspect-square w-full object-contain"
              />
            </Link>
          </li>
        ))}
      </ul>
      <p className="mt-2 text-xs text-muted-foreground">
        {newest.id}
        {isTraining(newest) && `, step ${count(data.samples[0]?.step)}`}
      </p>
    </Panel>
  );
}
