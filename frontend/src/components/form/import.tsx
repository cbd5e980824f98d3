"use client";
import { type DragEvent, useRef, useState } from "react";
import { Button } from "@/components/ui/button";
import { cx } from "@/components/ui/classes";
import { Dialog } from "@/components/ui/dialog";
import { UploadIcon } from "@/components/ui/icons";
import { fetchJson, type Place } from "@/lib/api/client";
import { withoutSecrets } from "@/lib/draft";
import { differences, isTree, type Tree } from "@/lib/json";
import type { Field } from "@/lib/schema";

interface Report {
  file: string;
  config: Tree | null;
  known: number;
  others: string[];
  secrets: string[];
  problems: Place[];
  error: string | null;
}

/** Paths of all that a file sets. */
export function leaves(config: Tree): string[] {
  return Object.entries(config).flatMap(([name, value]) =>
    isTree(value) ? Object.keys(value).map((key) => `${name}.${key}`) : [name],
  );
}

export function known(sections: readonly Field[]): Set<string> {
  const paths = new Set<string>();
  const visit = (field: Field) => {
    paths.add(field.path.join("."));
    field.fields.forEach(visit);
    if (field.kind === "variants") paths.add([...field.path, "kind"].join("."));
    for (const fields of Object.values(field.variants)) fields.forEach(visit);
  };
  sections.forEach(visit);
  return paths;
}

async function read(file: File, trainer: string, sections: Field[]): Promise<Report> {
  const report: Report = {
    file: file.name,
    config: null,
    known: 0,
    others: [],
    secrets: [],
    problems: [],
    error: null,
  };
  try {
    const content: unknown = JSON.parse(await file.text());
    if (!isTree(content)) throw new Error("The file holds no JSON object.");
    // A run.json of ours holds its configuration under `config`.
    const whole = isTree(content.config) ? content.config : content;
    const { config, taken } = withoutSecrets(whole);
    const paths = leaves(config);
    const fields = known(sections);
    const others = paths.filter((path) => !fields.has(path));
    const verdict = await fetchJson<{ problems: Place[] }>(`/api/${trainer}/config`, { config });
    return {
      ...report,
      config,
      known: paths.length - others.length,
      others,
      secrets: taken,
      problems: verdict.problems,
    };
  } catch (problem) {
    return { ...report, error: problem instanceof Error ? problem.message : String(problem) };
  }
}

/** A FLOW file, dropped or chosen: first what was understood of it, then it is taken over. */
export function Import({
  trainer,
  sections,
  onTake,
}: {
  trainer: string;
  sections: Field[];
  onTake: (config: Tree, name: string) => void;
}) {
  const input = useRef<HTMLInputElement>(null);
  const [isOver, setOver] = useState(false);
  const [report, setReport] = useState<Report | null>(null);
  const take = async (file: File | undefined) => file && setReport(await read(file, trainer, sections));
  const onDrop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    void take(event.dataTransfer.files[0]);
  };
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: the button in it does the same
    <div
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={onDrop}
      className={cx(
        "flex flex-wrap items-center justify-between gap-3 rounded-lg border border-dashed px-4 py-2.5",
        isOver ? "border-indigo bg-indigo-soft" : "border-line-strong",
      )}
    >
      <p className="text-sm text-ink-soft">
        {trainer === "flow" ? (
          <>
            Drop a configuration here: a FLOW <code className="figure text-xs">training_config.json</code>, or
            a run's <code className="figure text-xs">run.json</code>.
          </>
        ) : (
          <>
            Drop a configuration here: one that was exported, or a run's{" "}
            <code className="figure text-xs">run.json</code>.
          </>
        )}
      </p>
      <input
        ref={input}
        type="file"
        accept=".json,application/json"
        className="sr-only"
        tabIndex={-1}
        aria-label="Configuration file"
        onChange={(event) => {
          void take(event.target.files?.[0]);
          event.target.value = "";
        }}
      />
      <Button size="small" onClick={() => input.current?.click()}>
        <UploadIcon className="size-3.5" /> Choose a file
      </Button>
      <Dialog title={`Import ${report?.file ?? ""}`} isOpen={report !== null} onClose={() => setReport(null)}>
        {report && (
          <Told
            report={report}
            onClose={() => setReport(null)}
            onTake={() => {
              if (report.config) onTake(report.config, report.file);
              setReport(null);
            }}
          />
        )}
      </Dialog>
    </div>
  );
}

function Told({ report, onTake, onClose }: { report: Report; onTake: () => void; onClose: () => void }) {
  if (report.error) {
    return (
      <p role="alert" className="text-sm">
        <span className="font-semibold text-madder">The file could not be read.</span> {report.error}
      </p>
    );
  }
  const changed = report.config ? differences({}, report.config).length : 0;
  return (
    <div className="grid gap-3 text-sm">
      <p>
        <strong>{report.known}</strong> of {report.known + report.others.length} keys are fields of this form
        {changed === 0 && "; the file is empty"}.
      </p>
      {report.others.length > 0 && (
        <div>
          <p className="font-medium">Kept as they are, in the JSON beside the form:</p>
          <p className="figure text-xs text-ink-soft">{report.others.join(", ")}</p>
        </div>
      )}
      {report.secrets.length > 0 && (
        <p className="rounded border border-weld bg-weld-soft px-3 py-2">
          Tokens are left out ({report.secrets.join(", ")}): set them under Settings, where nobody can read
          them back.
        </p>
      )}
      {report.problems.length > 0 ? (
        <div>
          <p className="font-medium">To be mended before it can run:</p>
          <ul className="mt-1 grid max-h-56 gap-1 overflow-y-auto text-xs">
            {report.problems.map((problem) => (
              <li key={problem.pointer + problem.detail}>
                <code className="figure">{problem.pointer.replace("/config/", "").replaceAll("/", ".")}</code>{" "}
                {problem.detail}
              </li>
            ))}
          </ul>
        </div>
      ) : (
        <p className="text-nettle">It can run as it is.</p>
      )}
      <div className="flex justify-end gap-2">
        <Button onClick={onClose}>Leave it</Button>
        <Button kind="primary" onClick={onTake}>
          Take it over
        </Button>
      </div>
    </div>
  );
}
