"use client";
import { Suspense } from "react";
import { Empty } from "@/components/ui/panel";
import { TrainingPage } from "@/features/training/training-page";

export default function FlowTraining() {
  return (
    <Suspense>
      <TrainingPage
        trainer="flow"
        title="FLOW training"
        lead="Train Chroma or FLUX.1 by flow matching, with FLOW's configuration format."
        missing={<Empty title="This studio has no FLOW trainer" />}
      />
    </Suspense>
  );
}
