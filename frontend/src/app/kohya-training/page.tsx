"use client";
import { Suspense } from "react";
import { LinkButton } from "@/components/ui/button";
import { Empty } from "@/components/ui/panel";
import { TrainingPage } from "@/features/training/training-page";

export default function KohyaTraining() {
  return (
    <Suspense>
      <TrainingPage
        trainer="kohya"
        title="Kohya training"
        lead="Train with Kohya's sd-scripts, using the same datasets, queue and live charts."
        missing={
          <Empty
            title="Kohya training is not available in this studio"
            actions={<LinkButton href="/flow-training/">Train with FLOW</LinkButton>}
          >
            This version does not include it. FLOW training works without it.
          </Empty>
        }
      />
    </Suspense>
  );
}
