"use client";
import { useQuery } from "@tanstack/react-query";
import Link from "next/link";
import { cx } from "@/components/ui/class-names";
import { CheckIcon, ChevronIcon } from "@/components/ui/icons";
import { Panel } from "@/components/ui/panel";
import { datasetEntries, datasets } from "@/lib/api/datasets";
import { isTraining, runs, trainerModels } from "@/lib/api/queries";

interface NextStep {
  title: string;
  note: string;
  href: string;
  isDone: boolean | undefined;
}

const PARTS = {
  "model.path": "a base model",
  "model.vae_path": "the VAE",
  "model.t5_path": "the T5 encoder",
};

function useSteps(): NextStep[] {
  const { data: models } = useQuery(trainerModels("flow"));
  const { data: page } = useQuery(runs([], 50));
  const { data: datasetList } = useQuery({ ...datasets, refetchInterval: false, retry: false });
  const num = datasetList && datasetEntries(datasetList.filter((each) => each.name !== "demo")).length;
  // Ignore the demo's tiny models and files made by runs.
  const isOwn = (path: string) => !/\/models\/demo\/|\/demo-data\/|\/runs\//.test(path);
  const has = (key: string) => models?.[key]?.some(isOwn);
  const missing = Object.entries(PARTS).filter(([key]) => models && !has(key));
  const trainings = page?.runs.filter((run) => isTraining(run) && run.trainer !== "demo");
  return [
    {
      title: "Models",
      note: missing.length
        ? `Missing: ${missing.map(([, name]) => name).join(", ")}.`
        : "Base model, VAE and T5 found.",
      href: "/models/",
      isDone: models && missing.length === 0,
    },
    {
      title: "Dataset",
      note: num ? `${num} available.` : "Images with captions, or a FLOW JSONL.",
      href: "/datasets/",
      isDone: num === undefined ? undefined : num > 0,
    },
    {
      title: "Training run",
      note: "Start from a preset; everything else has a sensible default.",
      href: "/flow-training/",
      isDone: trainings && trainings.length > 0,
    },
  ];
}

/** The steps to a first LoRA, with links. */
export function NextSteps() {
  const steps = useSteps();
  return (
    <Panel title="Next steps" flush>
      <ol className="divide-y">
        {steps.map((step, index) => (
          <li key={step.href}>
            <Link href={step.href} className="flex items-center gap-3 px-4 py-3 hover:bg-muted">
              <span
                className={cx(
                  "figure grid size-6 shrink-0 place-items-center rounded-full border text-xs",
                  step.isDone ? "border-success bg-success-subtle text-success" : "text-secondary-foreground",
                )}
              >
                {step.isDone ? <CheckIcon className="size-3.5" /> : index + 1}
              </span>
              <span className="min-w-0 flex-1">
                <span className="block text-sm font-medium">
                  {step.title}
                  {step.isDone && <span className="sr-only"> (done)</span>}
                </span>
                <span className="block text-xs text-secondary-foreground">{step.note}</span>
              </span>
              <ChevronIcon className="size-3.5 text-muted-foreground" />
            </Link>
          </li>
        ))}
      </ol>
    </Panel>
  );
}
