"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import Link from "next/link";
import { useState } from "react";
import { Button, IconButton } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { DataIcon, PlusIcon, TrashIcon } from "@/components/ui/icons";
import { Empty, Page, Panel, Skeleton } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { Problem } from "@/lib/api/client";
import {
  type Dataset,
  datasetApi,
  datasetEntries,
  datasetHref,
  datasets,
  freshness,
  imagePage,
  summary,
  trash,
} from "@/lib/api/datasets";
import { ago, bytes, count } from "@/lib/format";
import { NewDataset } from "./new-dataset";
import { useUpdate } from "./outdated-notice";

function Thumbnails({ name }: { name: string }) {
  const { data } = useQuery(imagePage(name, {}, 0));
  return (
    <div className="grid h-24 grid-cols-4 gap-px overflow-hidden rounded-t-lg bg-border">
      {[0, 1, 2, 3].map((index) => {
        const image = data?.images[index];
        return image ? (
          <img
            key={index}
            src={`${image.url}?size=256`}
            alt=""
            loading="lazy"
            className="size-full bg-muted object-cover"
          />
        ) : (
          <div key={index} className="weave" />
        );
      })}
    </div>
  );
}

/** A JSONL built from the card's folder. */
function BuiltJsonl({ jsonl, onDelete }: { jsonl: Dataset; onDelete: () => void }) {
  const { data } = useQuery(freshness(jsonl.name));
  const { update, isBusy } = useUpdate(jsonl.name);
  return (
    <li className="flex items-center gap-2 py-1 pr-3 pl-3 text-xs">
      <Link href={datasetHref(jsonl.name)} className="min-w-0 flex-1 truncate font-medium hover:underline">
        {jsonl.name}
      </Link>
      {data?.is_outdated ? (
        <>
          <span className="text-warning">outdated</span>
          <Button size="small" isBusy={isBusy} onClick={() => update.mutate()}>
            {data.is_edited ? "Update, discard edits" : "Update"}
          </Button>
        </>
      ) : (
        <span className="text-muted-foreground">{data ? "up to date" : "\u00a0"}</span>
      )}
      <IconButton label={`Delete ${jsonl.name}`} onClick={onDelete}>
        <TrashIcon className="size-3.5" />
      </IconButton>
    </li>
  );
}

function Card({
  dataset,
  jsonls,
  onDelete,
}: {
  dataset: Dataset;
  jsonls: Dataset[];
  onDelete: (name: string) => void;
}) {
  const { data } = useQuery(summary(dataset.name));
  return (
    <li className="relative rounded-lg border bg-card hover:border-input">
      <Thumbnails name={dataset.name} />
      <div className="flex items-start justify-between gap-2 p-3">
        <div className="min-w-0">
          <Link
            href={datasetHref(dataset.name)}
            className="block truncate text-sm font-semibold after:absolute after:inset-0"
          >
            {dataset.name}
          </Link>
          <p className="mt-0.5 text-xs text-secondary-foreground">
            {data ? (
              <>
                {count(data.images)} images · {count(data.captioned)} captioned
                {data.bytes > 0 && ` · ${bytes(data.bytes)}`}
              </>
            ) : (
              "\u00a0"
            )}
          </p>
          <p className="text-xs text-muted-foreground">
            {dataset.kind}
            {dataset.is_link && ", linked"}
            {data && data.problems > 0 && (
              <span className="text-warning"> · {count(data.problems)} with problems</span>
            )}
          </p>
        </div>
        <IconButton
          label={`Delete ${dataset.name}`}
          className="relative z-10"
          onClick={() => onDelete(dataset.name)}
        >
          <TrashIcon className="size-3.5" />
        </IconButton>
      </div>
      {jsonls.length > 0 && (
        <ul aria-label={`JSONLs built from ${dataset.name}`} className="relative z-10 divide-y border-t">
          {jsonls.map((each) => (
            <BuiltJsonl key={each.name} jsonl={each} onDelete={() => onDelete(each.name)} />
          ))}
        </ul>
      )}
    </li>
  );
}

function Trash() {
  const { data } = useQuery(trash);
  const client = useQueryClient();
  const { notifyError, notify } = useToasts();
  const restore = useMutation({
    mutationFn: datasetApi.restore,
    onSuccess: (dataset) => {
      notify(`${dataset.name} restored.`);
      void client.invalidateQueries({ queryKey: ["datasets"] });
      void client.invalidateQueries({ queryKey: ["trash"] });
    },
    onError: notifyError,
  });
  if (!data || data.length === 0) return null;
  return (
    <Panel title="Trash" flush className="mt-6">
      <ul className="divide-y">
        {data.map((each) => (
          <li key={each.id} className="flex items-center justify-between gap-3 px-4 py-1.5 text-sm">
            <span>
              {each.name} <span className="text-xs text-muted-foreground">deleted {ago(each.time)}</span>
            </span>
            <Button size="small" onClick={() => restore.mutate(each.id)}>
              Restore
            </Button>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

export function DatasetsPage() {
  const { data, error, refetch } = useQuery(datasets);
  const [isCreating, setCreating] = useState(false);
  const client = useQueryClient();
  const { notifyError, notify } = useToasts();
  const remove = useMutation({
    mutationFn: datasetApi.remove,
    onSuccess: (removed) => {
      notify(`${removed.name} moved to the trash.`, "You can restore it below.");
      void client.invalidateQueries({ queryKey: ["datasets"] });
      void client.invalidateQueries({ queryKey: ["trash"] });
    },
    onError: notifyError,
  });
  const isUnsupported = error instanceof Problem && error.status === 404;
  return (
    <Page
      title="Datasets"
      lead="Images with captions: folders, FLOW JSONL files and buckets."
      actions={
        <Button kind="primary" onClick={() => setCreating(true)}>
          <PlusIcon /> New dataset
        </Button>
      }
    >
      {isUnsupported ? (
        <Empty title="This studio has no dataset library">
          {" "}
          Enter the path of a JSONL in the training form instead.
        </Empty>
      ) : error && !data ? (
        <ErrorAlert error={error} onRetry={() => void refetch()} />
      ) : !data ? (
        <div className="grid grid-cols-1 gap-4 sm:grid-cols-2 lg:grid-cols-3 min-[1900px]:grid-cols-4">
          <Skeleton className="h-44" />
          <Skeleton className="h-44" />
          <Skeleton className="h-44" />
        </div>
      ) : data.length === 0 ? (
        <div className="rounded-lg border bg-card">
          <Empty
            title="No datasets yet"
            actions={
              <Button kind="primary" onClick={() => setCreating(true)}>
                <DataIcon /> Create a dataset
              </Button>
            }
          >
            Then drop images, folders or zip files on it. Captions are read from text files next to the
            images, or from a JSONL.
          </Empty>
        </div>
      ) : (
        <ul className="grid grid-cols-1 gap-4 sm:grid-cols-2 lg:grid-cols-3 min-[1900px]:grid-cols-4">
          {datasetEntries(data).map(({ dataset, jsonls }) => (
            <Card
              key={dataset.name}
              dataset={dataset}
              jsonls={jsonls}
              onDelete={(name) => remove.mutate(name)}
            />
          ))}
        </ul>
      )}
      <Trash />
      <NewDataset isOpen={isCreating} onClose={() => setCreating(false)} />
    </Page>
  );
}
