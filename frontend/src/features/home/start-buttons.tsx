"use client";
import { Button, LinkButton } from "@/components/ui/button";
import { PlayIcon } from "@/components/ui/icons";
import { DEMO_MINUTES, useDemo } from "@/hooks/use-demo";

/** The buttons that start the demo or a training. */
export function StartButtons() {
  const demo = useDemo();
  return (
    <>
      <Button
        onClick={() => demo.mutate()}
        isBusy={demo.isPending}
        title={`Train a small Chroma model for ${DEMO_MINUTES} minutes`}
      >
        <PlayIcon />
        Try the demo
      </Button>
      <LinkButton kind="primary" href="/flow-training/">
        New training
      </LinkButton>
    </>
  );
}
