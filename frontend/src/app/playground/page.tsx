"use client";
import { useSearchParams } from "next/navigation";
import { Suspense } from "react";
import { TaskForm } from "@/components/form/task-form";
import { Page } from "@/components/ui/panel";
import { RecentSamples } from "@/features/playground/recent-samples";

const FIRST = [
  "source_path",
  "prompts",
  "negative",
  "width",
  "height",
  "steps",
  "cfg",
  "seed",
  "loras",
  "grid",
];

/** `?source=` names the model: a run's folder, a checkpoint or a LoRA. */
function Form() {
  const source = useSearchParams().get("source");
  const initial = { prompts: [], ...(source && { source_path: source }) };
  return <TaskForm key={source} task="sample" initial={initial} start="Generate" stay first={FIRST} />;
}

export default function Playground() {
  return (
    <Page
      title="Playground"
      wide
      lead="Generate images with a base model, a checkpoint or a LoRA. Each generation is saved as a run with its settings."
    >
      <div className="grid items-start gap-4 xl:grid-cols-[minmax(0,1fr)_minmax(0,1fr)]">
        <Suspense>
          <Form />
        </Suspense>
        <RecentSamples />
      </div>
    </Page>
  );
}
