"use client";
import { useQuery } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Confirm } from "@/components/ui/dialog";
import { BrushIcon, PlayIcon, SaveIcon, StopIcon } from "@/components/ui/icons";
import { Menu, type MenuItem } from "@/components/ui/menu";
import { type Action, useRunAction } from "@/hooks/use-run-action";
import type { RunView } from "@/lib/api/client";
import { ACTIVE, trainers } from "@/lib/api/queries";
import { BASE } from "@/lib/base-path";
import { formTrainer, trainerHref } from "@/lib/trainer-pages";
import { DuplicateDialog } from "./duplicate-dialog";

type Question = "kill" | "delete";

const QUESTIONS: Record<Question, { title: string; confirm: string; text: string }> = {
  kill: {
    title: "Stop now?",
    confirm: "Stop now",
    text: "Progress since the newest checkpoint is lost. “Save and stop” loses nothing.",
  },
  delete: {
    title: "Delete this run?",
    confirm: "Delete",
    text: "This permanently deletes its checkpoints, samples and history. Download anything you want to keep first.",
  },
};

/** Buttons for the actions that fit the run's state, and a menu. */
export function RunActions({ run }: { run: RunView }) {
  const router = useRouter();
  const { mutate, isPending, variables } = useRunAction();
  const { data: installed } = useQuery(trainers);
  const [question, setQuestion] = useState<Question | null>(null);
  const [isCopying, setCopying] = useState(false);
  const controls = installed?.find((trainer) => trainer.name === run.trainer)?.supported_controls;
  const can = (control: string) => controls === undefined || controls.includes(control);
  const isRunning = run.state === "running";
  // A request before the engine's first step would be lost.
  const isListening = isRunning && (run.step ?? 0) > 0 && run.phase !== "pending";
  const act = (action: Action) =>
    mutate({ action, id: run.id }, { onSuccess: () => action === "delete" && router.push("/runs/") });
  const isBusy = (action: Action) => isPending && variables?.action === action;

  const items: MenuItem[] = [
    { label: "Duplicate …", note: "A new run with the same configuration", onChoose: () => setCopying(true) },
  ];
  const form = trainerHref(formTrainer(run.trainer), { from: run.id });
  if (form) {
    items.push({
      label: "Edit as new training",
      note: "Opens its configuration in the form",
      onChoose: () => router.push(form),
    });
  }
  if (run.step || !ACTIVE.has(run.state)) {
    items.push({
      label: "Download results",
      note: "Newest weights, images, configuration and log as one zip",
      onChoose: () => window.location.assign(`${BASE}/api/runs/${encodeURIComponent(run.id)}/results.zip`),
    });
  }
  if (run.state === "queued") items.push({ label: "Remove from queue", onChoose: () => act("cancel") });
  if (isRunning || run.state === "stopping") {
    items.push({ label: "Stop now …", isDangerous: true, onChoose: () => setQuestion("kill") });
  }
  if (!ACTIVE.has(run.state))
    items.push({ label: "Delete …", isDangerous: true, onChoose: () => setQuestion("delete") });

  return (
    <>
      {isRunning && can("sample") && (
        <Button disabled={!isListening} onClick={() => act("sample")} isBusy={isBusy("sample")}>
          <BrushIcon /> Sample now
        </Button>
      )}
      {isRunning && can("checkpoint") && (
        <Button disabled={!isListening} onClick={() => act("save")} isBusy={isBusy("save")}>
          <SaveIcon /> Save now
        </Button>
      )}
      {isRunning && (
        <Button kind="primary" onClick={() => act("stop")} isBusy={isBusy("stop")}>
          <StopIcon /> Save and stop
        </Button>
      )}
      {run.can_resume && (
        <Button kind="primary" onClick={() => act("resume")} isBusy={isBusy("resume")}>
          <PlayIcon /> {run.starts_over ? "Start again" : "Resume"}
        </Button>
      )}
      <Menu label="More" items={items} />
      <DuplicateDialog run={run} isOpen={isCopying} onClose={() => setCopying(false)} />
      {question && (
        <Confirm
          title={QUESTIONS[question].title}
          isOpen
          onClose={() => setQuestion(null)}
          onConfirm={() => act(question)}
          confirm={QUESTIONS[question].confirm}
        >
          {QUESTIONS[question].text}
        </Confirm>
      )}
    </>
  );
}
