"use client";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Panel } from "@/components/ui/surface";
import { useToasts } from "@/components/ui/toasts";
import { copyText } from "@/lib/copy";
import { systemReport } from "./folders";

/** What a report of a fault should carry. */
export function Report() {
  const [text, setText] = useState<string | null>(null);
  const { say, complain } = useToasts();
  const copy = async () => {
    try {
      const report = await systemReport();
      setText(report);
      await copyText(report);
      say("The report is copied.");
    } catch (error) {
      complain(error);
    }
  };
  return (
    <Panel
      title="Doctor"
      actions={
        <Button size="small" onClick={() => void copy()}>
          Copy a report
        </Button>
      }
    >
      <p className="text-sm text-ink-soft">
        Versions, machine and trainers, without secrets or paths, for a report of a fault. In a terminal,{" "}
        <code className="figure text-xs">flowloom doctor</code> looks further: drivers, packages, disks.
      </p>
      {text && (
        <pre
          tabIndex={0}
          className="figure mt-3 max-h-80 overflow-auto rounded bg-sunken p-3 text-xs leading-5"
        >
          {text}
        </pre>
      )}
    </Panel>
  );
}
