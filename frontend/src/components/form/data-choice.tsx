"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import Link from "next/link";
import { useState } from "react";
import { runHref } from "@/components/run/progress";
import { Button, LinkButton } from "@/components/ui/button";
import { Select } from "@/components/ui/inputs";
import { Trouble } from "@/components/ui/trouble";
import { fetchJson, type RunView } from "@/lib/api/client";
import { type DataSet, datasetHref, datasets } from "@/lib/api/datasets";
import { ACTIVE } from "@/lib/api/queries";
import { at } from "@/lib/json";
import { useForm } from "./context";

const FOLLOW_MS = 700;
const NONE = "";
const RAW = "raw:";
const nameOf = (path: string) => path.split("/").slice(-2).join("/");
const jsonlOf = (dataset: DataSet) => `${dataset.name}.jsonl`;

/** A large set's JSONL is made by a run: followed until it is over. */
function useFollowed(id: string | null, onDone: () => void) {
  const { data } = useQuery({
    queryKey: ["run", id, "followed"],
    queryFn: async () => {
      const run = await fetchJson<RunView>(`/api/runs/${id}`);
      if (run.state === "finished") onDone();
      return run;
    },
    enabled: id !== null,
    refetchInterval: ({ state }) => (!state.data || ACTIVE.has(state.data.state) ? FOLLOW_MS : false),
  });
  return data;
}

/** Pictures without a JSONL yet: said what is to be made, and made at a click. */
function ToJsonl({ dataset, exists, onMade }: { dataset: DataSet; exists: boolean; onMade: () => void }) {
  const client = useQueryClient();
  const [runId, setRunId] = useState<string | null>(null);
  const finish = async () => {
    await client.invalidateQueries({ queryKey: ["datasets"] });
    onMade();
  };
  const make = useMutation({
    mutationFn: () =>
      fetchJson<{ run: RunView | null }>(`/api/datasets/${encodeURIComponent(dataset.name)}/convert`, {
        name: jsonlOf(dataset),
        captions: "auto",
        replace: true,
      }),
    onSuccess: ({ run }) => (run ? setRunId(run.id) : finish()),
  });
  const run = useFollowed(runId, () => void finish());
  const isBusy = make.isPending || (runId !== null && (!run || ACTIVE.has(run.state)));
  return (
    <>
      <p className="text-xs text-ink-soft">
        {dataset.name} is a {dataset.kind}; training reads a JSONL with a row for each picture and its
        caption.
        {exists && " There is one: make it anew if captions were changed since."}
      </p>
      {make.error && <Trouble error={make.error} />}
      {run && (
        <p role="status" className="text-xs text-ink-soft">
          <Link href={runHref(run.id)} className="text-indigo underline">
            {run.id}
          </Link>{" "}
          {run.state === "failed" ? (run.error?.message ?? "failed.") : `makes it: ${run.state}.`}
        </p>
      )}
      <div className="flex flex-wrap gap-1.5">
        {exists && (
          <Button size="small" kind="primary" onClick={onMade}>
            Take {jsonlOf(dataset)}
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
          Make {jsonlOf(dataset)}
          {exists ? " anew" : ""}
        </Button>
        <LinkButton size="small" href={datasetHref(dataset.name)}>
          See its captions
        </LinkButton>
      </div>
    </>
  );
}

/** The data set: a JSONL as it is, a folder or a bucket by way of one. */
export function DataChoice() {
  const { whole, set } = useForm();
  const client = useQueryClient();
  const { data } = useQuery({ ...datasets, retry: false });
  const [raw, setRaw] = useState<string | null>(null);
  const path = String(at(whole, ["dataloader", "jsonl_metadata_path"]) ?? "");
  const ready = data?.filter((each) => each.kind === "jsonl" && each.path) ?? [];
  const others = data?.filter((each) => each.kind !== "jsonl") ?? [];
  const chosen = others.find((each) => each.name === raw);
  const take = (found: DataSet | undefined) => {
    setRaw(null);
    set(["dataloader", "jsonl_metadata_path"], found?.path ?? NONE);
    if (found?.images_dir) set(["dataloader", "image_folder_path"], found.images_dir);
  };
  const choose = (value: string) => {
    if (value.startsWith(RAW)) setRaw(value.slice(RAW.length));
    else take(ready.find((each) => each.path === value));
  };
  const takeJsonlOf = (dataset: DataSet) => {
    const now = client.getQueryData(datasets.queryKey) ?? [];
    take(now.find((each) => each.name === jsonlOf(dataset)));
  };
  return (
    <div className="grid content-start gap-1.5">
      <label htmlFor="essential-data" className="label">
        Data set
      </label>
      <Select
        id="essential-data"
        value={chosen ? RAW + chosen.name : path}
        onChange={(event) => choose(event.target.value)}
      >
        <option value={NONE}>choose one, or name a JSONL below</option>
        {path && !ready.some((each) => each.path === path) && <option value={path}>{nameOf(path)}</option>}
        {ready.map((each) => (
          <option key={each.name} value={each.path ?? ""}>
            {each.name}
          </option>
        ))}
        {others.length > 0 && (
          <optgroup label="Pictures, a JSONL is made of them">
            {others.map((each) => (
              <option key={each.name} value={RAW + each.name}>
                {each.name} ({each.kind})
              </option>
            ))}
          </optgroup>
        )}
      </Select>
      {chosen ? (
        <ToJsonl
          dataset={chosen}
          exists={ready.some((each) => each.name === jsonlOf(chosen))}
          onMade={() => takeJsonlOf(chosen)}
        />
      ) : (
        <>
          <p className="text-xs text-ink-faint">
            {data && data.length === 0
              ? "None yet: upload pictures under Data sets."
              : "Its JSONL and the folder of its pictures are filled in."}
          </p>
          <div>
            <LinkButton size="small" href="/datasets/">
              Data sets
            </LinkButton>
          </div>
        </>
      )}
    </div>
  );
}
