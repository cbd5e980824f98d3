"use client";
import { useQuery } from "@tanstack/react-query";
import { Button, LinkButton } from "@/components/ui/button";
import { PlayIcon } from "@/components/ui/icons";
import { trainers } from "@/lib/api/queries";
import { DEMO_MINUTES, useDemo } from "@/lib/demo";

/** The two ways to begin. */
export function Begin() {
  const demo = useDemo();
  const { data } = useQuery(trainers);
  const hasDemo = data?.some((trainer) => trainer.name === "demo") ?? true;
  return (
    <>
      {hasDemo && (
        <Button onClick={() => demo.mutate()} isBusy={demo.isPending} title={`Trains a small Chroma for ${DEMO_MINUTES} minutes`}>
          <PlayIcon />
          Try the demo
        </Button>
      )}
      <LinkButton kind="primary" href="/flow-training/">
        New training
      </LinkButton>
    </>
  );
}
