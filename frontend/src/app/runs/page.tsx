"use client";
import dynamic from "next/dynamic";
import { useSearchParams } from "next/navigation";
import { Suspense } from "react";
import { Page, Skeleton } from "@/components/ui/panel";

const Waiting = () => (
  <Page title="Runs" lead={"\u00a0"} wide>
    <Skeleton className="h-96" />
  </Page>
);
const RunsPage = dynamic(() => import("@/features/runs/runs-page").then((module) => module.RunsPage), {
  loading: Waiting,
});
const RunPage = dynamic(() => import("@/features/run/run-page").then((module) => module.RunPage), {
  loading: Waiting,
});

/** The list of runs, or with `?id=` one run; `&with=` compares it with others. */
function Chosen() {
  const query = useSearchParams();
  const id = query.get("id");
  return id ? <RunPage key={id} id={id} others={query.getAll("with")} /> : <RunsPage />;
}

export default function Runs() {
  return (
    <Suspense fallback={<Waiting />}>
      <Chosen />
    </Suspense>
  );
}
