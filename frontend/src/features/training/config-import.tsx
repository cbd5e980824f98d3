"use client";
import { useSearchParams } from "next/navigation";
import { useEffect, useRef, useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { DropZone } from "@/components/ui/drop-zone";
import { UploadIcon } from "@/components/ui/icons";
import { useToasts } from "@/components/ui/toasts";
import type { Field } from "@/lib/form-fields";
import { importFiles, type Report } from "@/lib/import-files";
import type { Tree } from "@/lib/json";
import { readLoraSettings } from "@/lib/lora-settings";
import { ImportReport } from "./import-report";

interface Props {
  trainer: string;
  sections: Field[];
  /** Called with the imported configuration; `isPart`: it replaces only its own sections. */
  onTake: (config: Tree, isPart: boolean) => void;
}

/** Read the training settings of the model file in the URL. */
function useLoraSettings(trainer: string, sections: Field[], onReport: (report: Report) => void) {
  const query = useSearchParams();
  const [path, root] = [query.get("like"), query.get("root") ?? "models"];
  const { notifyError } = useToasts();
  // biome-ignore lint/correctness/useExhaustiveDependencies: once per file in the URL
  useEffect(() => {
    if (path === null) return;
    history.replaceState(null, "", window.location.pathname);
    readLoraSettings({ root, path })
      .then(async (like) => {
        if (!like) throw new Error(`${path} has no training settings in its header.`);
        const report = await importFiles([like.file], trainer, sections);
        onReport({ ...report, kind: like.kind });
      })
      .catch(notifyError);
  }, [path, root]);
}

/** Import configuration files by drop or dialog, with a report to confirm first. */
export function ConfigImport({ trainer, sections, onTake }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const [report, setReport] = useState<Report | null>(null);
  const isKohya = trainer === "kohya";
  useLoraSettings(trainer, sections, setReport);
  const take = async (list: FileList | null) => {
    const files = [...(list ?? [])];
    if (files.length === 0) return;
    const sources = await Promise.all(
      files.map(async (file) => ({ name: file.name, text: await file.text() })),
    );
    setReport(await importFiles(sources, trainer, sections));
  };
  return (
    <DropZone
      className="flex flex-wrap items-center justify-between gap-3"
      onDrop={(transfer) => void take(transfer.files)}
    >
      <p className="min-w-0 flex-1 basis-64 text-sm text-secondary-foreground">
        {isKohya ? (
          <>
            Drop files here: sd-scripts' <code className="figure text-xs">config.toml</code> with its{" "}
            <code className="figure text-xs">dataset.toml</code> and prompt file, a kohya_ss JSON, or a run's{" "}
            <code className="figure text-xs">run.json</code>.
          </>
        ) : (
          <>
            Drop a configuration here: a FLOW <code className="figure text-xs">training_config.json</code>, or
            a run's <code className="figure text-xs">run.json</code>.
          </>
        )}
      </p>
      <input
        ref={input}
        type="file"
        multiple={isKohya}
        accept={
          isKohya ? ".json,.toml,.txt,application/json,application/toml,text/plain" : ".json,application/json"
        }
        className="sr-only"
        tabIndex={-1}
        aria-label="Configuration file"
        onChange={(event) => {
          const { target } = event;
          void take(target.files).then(() => {
            target.value = "";
          });
        }}
      />
      <Button size="small" onClick={() => input.current?.click()}>
        <UploadIcon className="size-3.5" /> {isKohya ? "Choose files" : "Choose a file"}
      </Button>
      <Dialog title={`Import ${report?.file ?? ""}`} isOpen={report !== null} onClose={() => setReport(null)}>
        {report && (
          <ImportReport
            report={report}
            onClose={() => setReport(null)}
            onTake={() => {
              if (report.config) onTake(report.config, report.isPart);
              setReport(null);
            }}
          />
        )}
      </Dialog>
    </DropZone>
  );
}
