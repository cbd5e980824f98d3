"use client";
import { Suspense } from "react";
import { TrainingPage } from "@/components/form/training-page";
import { Empty } from "@/components/ui/surface";

export default function FlowTraining() {
  return (
    <Suspense>
      <TrainingPage
        trainer="flow"
        title="FLOW training"
        lead="Fine-tunes Chroma by flow matching, with FLOW's own configuration."
        missing={<Empty title="This studio has no FLOW trainer" />}
      />
    </Suspense>
  );
}
