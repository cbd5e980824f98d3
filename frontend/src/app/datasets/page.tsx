"use client";
import { useSearchParams } from "next/navigation";
import { Suspense } from "react";
import { DataSetPage } from "@/components/datasets/dataset-page";
import { DataSetsPage } from "@/components/datasets/list-page";

/** The shelf, or with `?name=` one data set. */
function Chosen() {
  const name = useSearchParams().get("name");
  return name ? <DataSetPage key={name} name={name} /> : <DataSetsPage />;
}

export default function DataSets() {
  return (
    <Suspense>
      <Chosen />
    </Suspense>
  );
}
