"use client";
import { useSearchParams } from "next/navigation";
import { Suspense } from "react";
import { DatasetPage } from "@/features/datasets/dataset-page";
import { DatasetsPage } from "@/features/datasets/datasets-page";

/** The list of datasets, or with `?name=` one dataset. */
function Chosen() {
  const name = useSearchParams().get("name");
  return name ? <DatasetPage key={name} name={name} /> : <DatasetsPage />;
}

export default function DataSets() {
  return (
    <Suspense>
      <Chosen />
    </Suspense>
  );
}
