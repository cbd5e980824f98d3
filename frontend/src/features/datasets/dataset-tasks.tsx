"use client";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { type FormEvent, useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Input, Select } from "@/components/ui/inputs";
import { runHref } from "@/features/run/run-progress";
import { api, type RunView, type Schemas, unwrap } from "@/lib/api/client";
import type { Dataset } from "@/lib/api/datasets";
import { count } from "@/lib/format";

export type DatasetTask = "lint" | "convert" | "export";

type LintResult = Pick<
  Schemas["LintResult"],
  "errors" | "warnings" | "counts" | "findings" | "num_rows" | "num_usable" | "buckets"
>;

/** The answer to a task: a run, or the result of a small dataset. */
interface Outcome {
  run: RunView | null;
  isDone: boolean;
  lint?: LintResult | null;
  numRows?: number;
}

const TITLES: Record<DatasetTask, string> = { lint: "Lint", convert: "Build JSONL", export: "Export" };
const MOST_SHOWN = 300;

/** Layouts of a folder, for those that the studio cannot detect. */
const FORMS = {
  auto: "auto-detect",
  folder: "images with caption files",
  kohya: "Kohya folders with repeats (10_name)",
  table: "a table, such as metadata.jsonl",
  webdataset: "tar archives (webdataset)",
  huggingface: "a saved Hugging Face dataset",
};

const CAPTIONS = { auto: "auto-detect", tags: "tags", prose: "prose" };
const FORMATS = {
  kohya: "Kohya folders",
  "kohya-toml": "Kohya TOML (images stay in place)",
  webdataset: "webdataset",
  parquet: "parquet",
};

function SelectField<Name extends string>({
  label,
  options,
  value,
  onChange,
}: {
  label: string;
  options: Record<Name, string>;
  value: Name;
  onChange: (value: Name) => void;
}) {
  return (
    <label className="grid gap-1 text-sm font-medium">
      {label}
      <Select value={value} onChange={(event) => onChange(event.target.value as Name)}>
        {Object.entries<string>(options).map(([name, text]) => (
          <option key={name} value={name}>
            {text}
          </option>
        ))}
      </Select>
    </label>
  );
}

/** Lint's numbers, then each finding with its row. */
function Report({ result, onItem }: { result: LintResult; onItem: (item: string) => void }) {
  const [kind, setKind] = useState<string | null>(null);
  const findings = result.findings.filter((each) => kind === null || each.kind === kind);
  const maxRows = Math.max(...result.buckets.map((bucket) => bucket.rows), 1);
  return (
    <div className="grid gap-3 text-sm">
      <p>
        <strong>{count(result.num_usable)}</strong> of {count(result.num_rows)} images can be trained on;
        errors: {count(result.errors)}, warnings: {count(result.warnings)}.
      </p>
      <div className="flex flex-wrap gap-1.5">
        {Object.entries(result.counts).map(([name, number]) => (
          <Button
            key={name}
            size="small"
            aria-pressed={kind === name}
            onClick={() => setKind(kind === name ? null : name)}
          >
            {name.replaceAll("_", " ")} <span className="figure text-muted-foreground">{count(number)}</span>
          </Button>
        ))}
      </div>
      {result.buckets.length > 0 && (
        <ul className="flex h-24 items-end gap-px rounded bg-muted p-2" aria-label="Rows per bucket">
          {result.buckets.map((bucket) => (
            <li
              key={`${bucket.width}x${bucket.height}`}
              title={`${bucket.width} × ${bucket.height}: ${bucket.rows} rows`}
              className="min-w-1 flex-1 rounded-t bg-primary"
              style={{ height: `${Math.max(3, (bucket.rows / maxRows) * 100)}%` }}
            />
          ))}
        </ul>
      )}
      <ul className="max-h-80 divide-y overflow-y-auto rounded border text-xs">
        {findings.slice(0, MOST_SHOWN).map((each) => (
          <li key={`${each.kind}${each.line}${each.message}`}>
            <button
              type="button"
              className="grid w-full gap-0.5 px-3 py-1.5 text-left hover:bg-muted"
              onClick={() => onItem(each.filename)}
            >
              <span className="figure [overflow-wrap:anywhere]">{each.filename}</span>
              <span className="text-secondary-foreground">
                {each.kind.replaceAll("_", " ")}: {each.message}
              </span>
            </button>
          </li>
        ))}
      </ul>
      {findings.length > MOST_SHOWN && (
        <p className="text-xs text-muted-foreground">
          {" "}
          Showing the first {MOST_SHOWN} of {count(findings.length)}.
        </p>
      )}
    </div>
  );
}

interface Props {
  dataset: Dataset;
  task: DatasetTask | null;
  onClose: () => void;
  onItem: (item: string) => void;
}

/** Lint, conversion and export. Small datasets finish at once, large ones become a run. */
export function DatasetTasks({ dataset, task, onClose, onItem }: Props) {
  return (
    <Dialog
      title={task ? `${TITLES[task]}: ${dataset.name}` : ""}
      isOpen={task !== null}
      onClose={onClose}
      width="max-w-2xl"
    >
      {task && <Form dataset={dataset} task={task} onClose={onClose} onItem={onItem} />}
    </Dialog>
  );
}

interface Options {
  name: string;
  form: keyof typeof FORMS;
  captions: keyof typeof CAPTIONS;
  to: keyof typeof FORMATS;
  /** Bucket resolutions, separated by spaces or commas. */
  resolutions: string;
}

const sidesOf = (text: string) =>
  text
    .split(/[\s,]+/)
    .filter(Boolean)
    .map(Number);

async function runTask(task: DatasetTask, dataset: string, options: Options): Promise<Outcome> {
  const { name, form, captions, to } = options;
  const params = { path: { dataset } };
  if (task === "lint") {
    const body = { base_resolution: sidesOf(options.resolutions), form };
    const { run, result } = await unwrap(api.POST("/api/datasets/{dataset}/lint", { params, body }));
    return { run, isDone: result !== null, lint: result };
  }
  const { run, result } =
    task === "convert"
      ? await unwrap(
          api.POST("/api/datasets/{dataset}/convert", {
            params,
            body: { name: name.trim(), captions, form, replace: true },
          }),
        )
      : await unwrap(api.POST("/api/datasets/{dataset}/export", { params, body: { name: name.trim(), to } }));
  return { run, isDone: result !== null, numRows: result?.num_rows };
}

function Form({ dataset, task, onClose, onItem }: Props & { task: DatasetTask }) {
  const router = useRouter();
  const client = useQueryClient();
  const [options, setOptions] = useState<Options>({
    name: task === "convert" ? `${dataset.name}.jsonl` : `${dataset.name}-kohya`,
    form: "auto",
    captions: "auto",
    to: "kohya",
    resolutions: "512",
  });
  const set = (part: Partial<Options>) => setOptions((old) => ({ ...old, ...part }));
  const request = useMutation({
    mutationFn: () => runTask(task, dataset.name, options),
    onSuccess: ({ run }) => {
      void client.invalidateQueries({ queryKey: ["datasets"] });
      if (run) router.push(runHref(run.id));
    },
  });
  const onSubmit = (event: FormEvent) => {
    event.preventDefault();
    request.mutate();
  };
  const outcome = request.data;
  const isMade = outcome?.isDone === true && task !== "lint";
  return (
    <form className="grid gap-3" onSubmit={onSubmit}>
      {task === "lint" ? (
        <label className="grid gap-1 text-sm font-medium">
          Bucket resolutions
          <Input
            value={options.resolutions}
            onChange={(event) => set({ resolutions: event.target.value })}
            inputMode="numeric"
          />
        </label>
      ) : (
        <label className="grid gap-1 text-sm font-medium">
          Name of the new dataset
          <Input value={options.name} onChange={(event) => set({ name: event.target.value })} required />
        </label>
      )}
      {task !== "export" && dataset.kind === "folder" && (
        <SelectField
          label="Read the folder as"
          options={FORMS}
          value={options.form}
          onChange={(form) => set({ form })}
        />
      )}
      {task === "convert" && (
        <SelectField
          label="Caption type"
          options={CAPTIONS}
          value={options.captions}
          onChange={(captions) => set({ captions })}
        />
      )}
      {task === "export" && (
        <SelectField label="Format" options={FORMATS} value={options.to} onChange={(to) => set({ to })} />
      )}
      {request.error && <ErrorAlert error={request.error} />}
      {outcome?.lint && <Report result={outcome.lint} onItem={onItem} />}
      {isMade && (
        <p role="status" className="text-sm text-success">
          Created {options.name}
          {outcome.numRows !== undefined && ` with ${count(outcome.numRows)} rows`}. It is listed under
          Datasets and in the training form.
        </p>
      )}
      <div className="flex justify-end gap-2">
        <Button onClick={onClose}>{outcome?.isDone ? "Close" : "Cancel"}</Button>
        {!isMade && (
          <Button type="submit" kind="primary" isBusy={request.isPending}>
            {TITLES[task]}
          </Button>
        )}
      </div>
    </form>
  );
}
