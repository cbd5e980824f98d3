"use client";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { TaskDialog, type TaskRequest } from "@/components/form/task-form";
import { Button, LinkButton } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { ErrorAlert } from "@/components/ui/error-alert";
import { SearchInput } from "@/components/ui/inputs";
import { Menu } from "@/components/ui/menu";
import { Empty, Page, Skeleton } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { Problem } from "@/lib/api/client";
import {
  type Dataset,
  datasetEntries,
  datasets,
  type ImageFilter,
  type Summary,
  summary,
  tags as tagsQuery,
} from "@/lib/api/datasets";
import { bytes, count } from "@/lib/format";
import { BulkEdit } from "./bulk-edit";
import { CaptionEditor } from "./caption-editor";
import { type DatasetTask, DatasetTasks } from "./dataset-tasks";
import { Gallery } from "./gallery";
import { OutdatedNotice } from "./outdated-notice";
import { Uploader } from "./uploader";
import { type Show, useDatasetView } from "./use-dataset-view";

function Tags({
  dataset,
  wanted,
  onTag,
}: {
  dataset: string;
  wanted: ImageFilter;
  onTag: (tag: string) => void;
}) {
  const { data } = useQuery(tagsQuery(dataset, wanted));
  if (!data || data.tags.length === 0) return null;
  const maxCount = data.tags[0]?.count ?? 1;
  return (
    <section aria-label="Tags" className="rounded-lg border bg-card p-3">
      <h2 className="label mb-2">{count(data.distinct)} tags</h2>
      <ul className="flex max-h-96 flex-wrap gap-1 overflow-y-auto">
        {data.tags.map(({ tag, count: number }) => (
          <li key={tag}>
            <button
              type="button"
              aria-pressed={wanted.tags?.includes(tag) ?? false}
              onClick={() => onTag(tag)}
              className={cx(
                "rounded border px-1.5 py-0.5 text-xs hover:border-input",
                wanted.tags?.includes(tag) ? "border-primary bg-accent text-primary" : "bg-muted",
              )}
              style={{ fontWeight: 400 + Math.round((number / maxCount) * 250) }}
            >
              {tag} <span className="figure text-2xs text-muted-foreground">{number}</span>
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

export function DatasetPage({ name }: { name: string }) {
  const { data, error, refetch } = useQuery(summary(name));
  if (!error || data) return <DatasetView name={name} />;
  return (
    <Page title={name} actions={<LinkButton href="/datasets/">All datasets</LinkButton>}>
      {error instanceof Problem && error.status === 404 ? (
        <Empty title="Dataset not found">It may have been renamed or deleted.</Empty>
      ) : (
        <ErrorAlert error={error} onRetry={() => void refetch()} />
      )}
    </Page>
  );
}

function summaryText({ images, captioned, bytes: size, scan }: Summary): string {
  return [
    `${count(images)} image${images === 1 ? "" : "s"}`,
    `${count(captioned)} with captions`,
    size > 0 && bytes(size),
  ]
    .filter(Boolean)
    .join(", ")
    .concat(scan.is_running ? " (scanning)" : "");
}

/** The Tools menu, with the dialogs that it opens. */
function Tools({
  name,
  dataset,
  onItem,
}: {
  name: string;
  dataset: Dataset | undefined;
  onItem: (item: string) => void;
}) {
  const [task, setTask] = useState<TaskRequest | null>(null);
  const [dialog, setDialog] = useState<DatasetTask | null>(null);
  const initial = {
    data_path: dataset?.path ?? dataset?.url ?? "",
    ...(dataset?.kind === "bucket" && { storage: dataset.storage }),
    ...(dataset?.kind === "jsonl" && { image_folder_path: dataset.images_dir }),
  };
  return (
    <>
      <Menu
        label="Tools"
        items={[
          {
            label: "Tag …",
            note: "With a WD14 tagger",
            onChoose: () => setTask({ task: "tag", title: `Tag ${name}`, initial }),
          },
          {
            label: "Caption …",
            note: "In sentences, with Florence-2, BLIP or a chat model",
            onChoose: () => setTask({ task: "caption", title: `Caption ${name}`, initial }),
          },
          {
            label: "Lint …",
            note: "Find damaged, missing and duplicate images, and long captions",
            onChoose: () => setDialog("lint"),
          },
          {
            label: "Build JSONL …",
            note: "For export, or for training elsewhere",
            isDisabled: dataset?.kind === "jsonl",
            onChoose: () => setDialog("convert"),
          },
          {
            label: "Export …",
            note: "As Kohya folders, webdataset or parquet",
            isDisabled: dataset?.kind !== "jsonl",
            onChoose: () => setDialog("export"),
          },
        ]}
      />
      {dataset && (
        <DatasetTasks
          dataset={dataset}
          task={dialog}
          onClose={() => setDialog(null)}
          onItem={(item) => {
            setDialog(null);
            onItem(item);
          }}
        />
      )}
      <TaskDialog request={task} onClose={() => setTask(null)} />
    </>
  );
}

function Filters({
  search,
  show,
  numProblems,
  total,
  onFilter,
}: {
  search: string;
  show: Show;
  numProblems: number;
  total: number | undefined;
  onFilter: (next: { show?: Show; search?: string }) => void;
}) {
  return (
    <div className="mb-3 flex flex-wrap items-center gap-3">
      <SearchInput
        className="min-w-48 flex-1"
        label="Search captions and names"
        value={search}
        onSearch={(search) => onFilter({ search })}
      />
      <ToggleGroup
        label="Filter images"
        value={show}
        onChange={(next) => onFilter({ show: next })}
        options={[
          { value: "all", label: "All" },
          { value: "uncaptioned", label: "No caption" },
          { value: "problems", label: numProblems ? `Problems ${numProblems}` : "Problems" },
        ]}
      />
      <span className="figure text-xs text-muted-foreground">{count(total)}</span>
    </div>
  );
}

function DatasetView({ name }: { name: string }) {
  const { data: facts, error } = useQuery(summary(name));
  const { data: all = [] } = useQuery(datasets);
  const [isEditing, setEditing] = useState(false);
  const view = useDatasetView(name);
  const { image, selected, total } = view;
  const dataset = all.find((each) => each.name === name);
  const jsonls = datasetEntries(all).find((each) => each.dataset === dataset)?.jsonls ?? [];
  const hasAside = image !== undefined || (facts?.captioned ?? 0) > 0;
  return (
    <Page
      title={name}
      wide
      lead={facts ? summaryText(facts) : "\u00a0"}
      actions={
        <>
          <LinkButton href="/datasets/" kind="quiet">
            All datasets
          </LinkButton>
          <Tools
            name={name}
            dataset={dataset}
            onItem={(item) => view.filter({ show: "all", search: item })}
          />
          <Button onClick={() => setEditing(true)} disabled={!total}>
            Bulk edit captions
          </Button>
        </>
      }
    >
      {(error || view.error) && (
        <div className="mb-4">
          <ErrorAlert error={error ?? view.error} />
        </div>
      )}
      {(dataset?.kind === "jsonl" ? [dataset] : jsonls).map((each) => (
        <OutdatedNotice key={each.name} name={each.name} />
      ))}
      {(!dataset || dataset.kind === "folder") && <Uploader dataset={name} />}
      <Filters
        search={view.search}
        show={view.show}
        numProblems={facts?.problems ?? 0}
        total={total}
        onFilter={view.filter}
      />
      <div className={cx("grid items-start gap-4", hasAside && "lg:grid-cols-[minmax(0,1fr)_20rem]")}>
        {facts && total === 0 ? (
          <Empty title={facts.images === 0 ? "No images yet" : "No image matches"}>
            {facts.images === 0 ? "Drop images above." : "Change the search, or show all images."}
          </Empty>
        ) : facts && total !== undefined ? (
          <Gallery
            total={total}
            selected={view.isInList ? selected : null}
            at={view.at}
            onSee={view.load}
            onChoose={view.select}
          />
        ) : (
          <Skeleton className="h-96" />
        )}
        <div className="grid gap-4">
          {image && selected !== null && (
            <CaptionEditor
              key={image.item}
              dataset={name}
              image={image}
              position={
                view.isInList ? `${count(selected + 1)} of ${count(total)}` : "no longer in this list"
              }
              onMove={view.move}
              onClose={view.close}
              onTag={view.toggleTag}
            />
          )}
          <Tags dataset={name} wanted={view.wanted} onTag={view.toggleTag} />
        </div>
      </div>
      <BulkEdit
        dataset={name}
        wanted={view.wanted}
        total={total ?? 0}
        isOpen={isEditing}
        onClose={() => setEditing(false)}
      />
    </Page>
  );
}
