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
        lead="Drives Kohya's sd-scripts, with the same data sets, queue and live page."
        missing={
          <Empty
            title="This studio does not drive Kohya's scripts"
            actions={<LinkButton href="/flow-training/">Train with FLOW</LinkButton>}
          >
            It is an older version, or they were left out. FLOW training needs nothing more.
          </Empty>
        }
      />
    </Suspense>
  );
}
