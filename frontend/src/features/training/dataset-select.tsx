"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import Link from "next/link";
import { useState } from "react";
import { useForm } from "@/components/form/form-context";
import { Button, LinkButton } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Select } from "@/components/ui/inputs";
import { OutdatedNotice } from "@/features/datasets/outdated-notice";
import { runHref } from "@/features/run/run-progress";
import { api, unwrap } from "@/lib/api/client";
import { type Dataset, datasetHref, datasets, summary } from "@/lib/api/datasets";
import { ACTIVE, readRun } from "@/lib/api/queries";
import { count } from "@/lib/format";
import { at } from "@/lib/json";
import { withImageDir } from "@/lib/kohya-datasets";

const FOLLOW_MS = 700;
const NONE = "";
const BUCKET = "raw:";
const nameOf = (path: string) => path.split("/").slice(-2).join("/");
const jsonlOf = (dataset: Dataset) => `${dataset.name}.jsonl`;

/** Poll the run that builds a large dataset's JSONL until it ends. */
function useFollowed(id: string | null, onDone: () => void) {
  const { data } = useQuery({
    queryKey: ["run", id, "followed"],
    queryFn: async () => {
      const run = await readRun(id ?? "");
      if (run.state === "finished") onDone();
      return run;
    },
    enabled: id !== null,
    refetchInterval: ({ state }) => (!state.data || ACTIVE.has(state.data.state) ? FOLLOW_MS : false),
  });
  return data;
}

/** Build the JSONL that training on a bucket needs. */
function ToJsonl({ dataset, exists, onMade }: { dataset: Dataset; exists: boolean; onMade: () => void }) {
  const client = useQueryClient();
  const [runId, setRunId] = useState<string | null>(null);
  const finish = async () => {
    await client.invalidateQueries({ queryKey: ["datasets"] });
    onMade();
  };
  const make = useMutation({
    mutationFn: () =>
      unwrap(
        api.POST("/api/datasets/{dataset}/convert", {
          params: { path: { dataset: dataset.name } },
          body: { name: jsonlOf(dataset), captions: "auto", replace: true },
        }),
      ),
    onSuccess: ({ run }) => (run ? setRunId(run.id) : finish()),
  });
  const run = useFollowed(runId, () => void finish());
  const isBusy = make.isPending || (runId !== null && (!run || ACTIVE.has(run.state)));
  return (
    <>
      <p className="text-xs text-secondary-foreground">
        {dataset.name} is a bucket. Training needs a JSONL with one row per image.
        {exists && " One exists: rebuild it if captions have changed."}
      </p>
      {make.error && <ErrorAlert error={make.error} />}
      {run && (
        <p role="status" className="text-xs text-secondary-foreground">
          <Link href={runHref(run.id)} className="text-primary underline">
            {run.id}
          </Link>{" "}
          {run.state === "failed" ? (run.error?.message ?? "failed.") : `is building it (${run.state}).`}
        </p>
      )}
      <div className="flex flex-wrap gap-1.5">
        {exists && (
          <Button size="small" kind="primary" onClick={onMade}>
            Use {jsonlOf(dataset)}
          </Button>
        )}
        <Button
          size="small"
          kind={exists ? "plain" : "primary"}
          isBusy={isBusy}
          onClick={() => {
            setRunId(null);
            make.mutate();
          }}
        >
          {exists ? "Rebuild" : "Build"} {jsonlOf(dataset)}
        </Button>
        <LinkButton size="small" href={datasetHref(dataset.name)}>
          Show captions
        </LinkButton>
      </div>
    </>
  );
}

/** The number of a folder's images that training skips, and a link to their captions. */
function FolderNote({ dataset }: { dataset: Dataset }) {
  const { data } = useQuery(summary(dataset.name));
  const uncaptioned = data ? data.images - data.captioned : 0;
  const broken = data?.problems ?? 0;
  const images = (num: number) => `${count(num)} image${num === 1 ? "" : "s"}`;
  return (
    <>
      <p className="text-xs text-muted-foreground">
        Captions are read from the files in this folder when the run starts.
        {uncaptioned > 0 && (
          <span className="text-warning"> {images(uncaptioned)} without a caption: skipped.</span>
        )}
        {broken > 0 && <span className="text-warning"> {images(broken)} with problems: may be skipped.</span>}
      </p>
      <div>
        <LinkButton size="small" href={datasetHref(dataset.name)}>
          Show captions
        </LinkButton>
      </div>
    </>
  );
}

/** Choose a dataset: a folder, a JSONL, or a bucket through a JSONL. */
export function DatasetSelect() {
  const { whole, set } = useForm();
  const client = useQueryClient();
  const { data } = useQuery({ ...datasets, retry: false });
  const [bucketName, setBucketName] = useState<string | null>(null);
  const path = String(at(whole, ["dataloader", "jsonl_metadata_path"]) ?? "");
  const folders = data?.filter((each) => each.kind === "folder" && each.path) ?? [];
  const jsonls = data?.filter((each) => each.kind === "jsonl" && each.path) ?? [];
  const buckets = data?.filter((each) => each.kind === "bucket") ?? [];
  const bucket = buckets.find((each) => each.name === bucketName);
  const chosen = [...folders, ...jsonls].find((each) => each.path === path);
  const source = chosen?.kind === "jsonl" && folders.find((each) => each.path === chosen.source);
  const select = (dataset: Dataset | undefined) => {
    setBucketName(null);
    set(["dataloader", "jsonl_metadata_path"], dataset?.path ?? NONE);
    const images = dataset?.kind === "folder" ? dataset.path : dataset?.images_dir;
    if (images) set(["dataloader", "image_folder_path"], images);
  };
  const choose = (value: string) => {
    if (value.startsWith(BUCKET)) setBucketName(value.slice(BUCKET.length));
    else select([...folders, ...jsonls].find((each) => each.path === value));
  };
  const takeJsonlOf = (dataset: Dataset) => {
    const fresh = client.getQueryData(datasets.queryKey) ?? [];
    select(fresh.find((each) => each.name === jsonlOf(dataset)));
  };
  return (
    <div className="grid content-start gap-1.5">
      <label htmlFor="essential-data" className="label">
        {" "}
        Dataset{" "}
      </label>
      <Select
        id="essential-data"
        value={bucket ? BUCKET + bucket.name : path}
        onChange={(event) => choose(event.target.value)}
      >
        <option value={NONE}>Choose a dataset, or enter a folder or JSONL below</option>
        {path && !chosen && <option value={path}>{nameOf(path)}</option>}
        {folders.map((each) => (
          <option key={each.name} value={each.path ?? ""}>
            {each.name}
          </option>
        ))}
        {jsonls.length > 0 && (
          <optgroup label="JSONL files">
            {jsonls.map((each) => (
              <option key={each.name} value={each.path ?? ""}>
                {each.name}
              </option>
            ))}
          </optgroup>
        )}
        {buckets.length > 0 && (
          <optgroup label="Buckets (through a JSONL)">
            {buckets.map((each) => (
              <option key={each.name} value={BUCKET + each.name}>
                {each.name}
              </option>
            ))}
          </optgroup>
        )}
      </Select>
      {bucket ? (
        <ToJsonl
          dataset={bucket}
          exists={jsonls.some((each) => each.name === jsonlOf(bucket))}
          onMade={() => takeJsonlOf(bucket)}
        />
      ) : chosen?.kind === "folder" ? (
        <FolderNote dataset={chosen} />
      ) : (
        <>
          {chosen && (
            <OutdatedNotice name={chosen.name} isSmall>
              {source && (
                <Button size="small" onClick={() => select(source)}>
                  Use the folder instead
                </Button>
              )}
            </OutdatedNotice>
          )}
          <p className="text-xs text-muted-foreground">
            {data && data.length === 0
              ? "No datasets yet: upload images under Datasets."
              : "This also fills in the image folder."}
          </p>
          <div>
            <LinkButton size="small" href="/datasets/">
              {" "}
              Datasets{" "}
            </LinkButton>
          </div>
        </>
      )}
    </div>
  );
}

const FIRST_SUBSET = ["datasets", "0", "subsets", "0", "image_dir"];

/** Choose a folder for Kohya; sd-scripts reads its captions itself. */
export function KohyaDatasetSelect() {
  const { whole, set } = useForm();
  const { data } = useQuery({ ...datasets, retry: false });
  const folders = data?.filter((each) => each.kind === "folder" && each.path) ?? [];
  const path = String(at(whole, FIRST_SUBSET) ?? "");
  const chosen = folders.find((each) => each.path === path);
  return (
    <div className="grid content-start gap-1.5">
      <label htmlFor="essential-data" className="label">
        {" "}
        Dataset{" "}
      </label>
      <Select
        id="essential-data"
        value={path}
        onChange={(event) => set(["datasets"], withImageDir(at(whole, ["datasets"]), event.target.value))}
      >
        <option value={NONE}>Choose a dataset, or enter a folder below</option>
        {path && !chosen && <option value={path}>{nameOf(path)}</option>}
        {folders.map((each) => (
          <option key={each.name} value={each.path ?? ""}>
            {each.name}
          </option>
        ))}
      </Select>
      <p className="text-xs text-muted-foreground">
        sd-scripts reads captions from the files next to the images when the run starts. Set repeats and
        resolution below, under Datasets.
      </p>
    </div>
  );
}
