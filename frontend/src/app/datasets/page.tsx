"use client";
import { useSearchParams } from "next/navigation";
import { Suspense } from "react";
import { DatasetPage } from "@/features/datasets/dataset-page";
import { DatasetsPage } from "@/features/datasets/datasets-page";

/** The shelf, or with `?name=` one data set. */
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
