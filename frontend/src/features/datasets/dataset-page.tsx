"use client";
import { useQuery } from "@tanstack/react-query";
import { useCallback, useMemo, useState } from "react";
import { type AskedTask, TaskDialog } from "@/components/form/task-form";
import { Button, LinkButton } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { ErrorAlert } from "@/components/ui/error-alert";
import { SearchInput } from "@/components/ui/inputs";
import { Menu } from "@/components/ui/menu";
import { Empty, Page, Skeleton } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { useDebounced } from "@/hooks/use-validation";
import { Problem } from "@/lib/api/client";
import {
  datasets,
  PAGE,
  type Picture,
  shelved,
  summary,
  tags as tagsQuery,
  type Wanted,
} from "@/lib/api/datasets";
import { onward } from "@/lib/caption-saver";
import { bytes, count } from "@/lib/format";
import { BulkEdit } from "./bulk-edit";
import { CaptionEditor } from "./caption-editor";
import { type Asked, DatasetTasks } from "./dataset-tasks";
import { Gallery, usePictures } from "./gallery";
import { OutdatedNotice } from "./outdated-notice";
import { Uploader } from "./uploader";

type Show = "all" | "bare" | "bad";

function Tags({ dataset, wanted, onTag }: { dataset: string; wanted: Wanted; onTag: (tag: string) => void }) {
  const { data } = useQuery(tagsQuery(dataset, wanted));
  if (!data || data.tags.length === 0) return null;
  const most = data.tags[0]?.count ?? 1;
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
              style={{ fontWeight: 400 + Math.round((number / most) * 250) }}
            >
              {tag} <span className="figure text-2xs text-muted-foreground">{number}</span>
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

/** A data set, or what stands in its way where it cannot be read at all. */
export function DatasetPage({ name }: { name: string }) {
  const { data, error, refetch } = useQuery(summary(name));
  if (!error || data) return <Pictures name={name} />;
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

function Pictures({ name }: { name: string }) {
  const { data: facts, error } = useQuery(summary(name));
  const [search, setSearch] = useState("");
  const [show, setShow] = useState<Show>("all");
  const [tags, setTags] = useState<string[]>([]);
  const [chosen, setChosen] = useState<number | null>(null);
  // Whose caption is being edited stays so, wherever its saved caption puts it in the list.
  const [held, setHeld] = useState<Picture | null>(null);
  const [pages, setPages] = useState([0]);
  const [isEditing, setEditing] = useState(false);
  const [asked, setAsked] = useState<AskedTask | null>(null);
  const [work, setWork] = useState<Asked | null>(null);
  const { data: shelf } = useQuery(datasets);
  const found = shelf?.find((each) => each.name === name);
  const jsonls = (found && shelved(shelf ?? []).find((each) => each.dataset === found)?.jsonls) ?? [];
  const place = {
    data_path: found?.path ?? "",
    ...(found?.kind === "jsonl" && { image_folder_path: found.images_dir }),
  };
  const text = useDebounced(search);
  const wanted = useMemo<Wanted>(
    () => ({
      ...(text && { text }),
      ...(tags.length > 0 && { tags }),
      ...(show === "bare" && { has_caption: false }),
      ...(show === "bad" && { has_problem: true }),
    }),
    [text, tags, show],
  );
  const ahead = Math.floor((chosen ?? 0) / PAGE);
  const read = chosen === null || pages.includes(ahead) ? pages : [...pages, ahead];
  const { at, total, error: trouble } = usePictures(name, wanted, read);
  const here = chosen === null ? undefined : at(chosen);
  // As it is now, so that its own older caption is never taken for somebody else's.
  if (here && here !== held && (held === null || held.item === here.item)) setHeld(here);
  const isThere = held === null || here?.item === held.item;
  const choose = useCallback((index: number | null) => {
    setChosen(index);
    setHeld(null);
  }, []);
  const onTag = useCallback(
    (tag: string) => {
      setTags((old) => (old.includes(tag) ? old.filter((each) => each !== tag) : [...old, tag]));
      choose(null);
      setPages([0]);
    },
    [choose],
  );
  const onMove = useCallback(
    (by: number) => {
      if (chosen === null || !total) return;
      const next = onward(chosen, isThere, by, total);
      if (next !== chosen || !isThere) choose(next);
    },
    [chosen, isThere, total, choose],
  );
  const onClose = useCallback(() => choose(null), [choose]);
  const onSee = useCallback((next: number[]) => setPages(next.length > 0 ? next : [0]), []);
  const picture = chosen === null ? undefined : (isThere && here) || held || undefined;
  const hasAside = picture !== undefined || (facts?.captioned ?? 0) > 0;
  const filter = (next: Partial<{ show: Show; search: string }>) => {
    if (next.show) setShow(next.show);
    if (next.search !== undefined) setSearch(next.search);
    choose(null);
    setPages([0]);
  };
  return (
    <Page
      title={name}
      wide
      lead={
        facts
          ? `${count(facts.images)} image${facts.images === 1 ? "" : "s"}, ${count(facts.captioned)} with captions${facts.bytes > 0 ? `, ${bytes(facts.bytes)}` : ""}${facts.scan.is_running ? " (scanning)" : ""}`
          : "\u00a0"
      }
      actions={
        <>
          <LinkButton href="/datasets/" kind="quiet">
            All datasets
          </LinkButton>
          <Menu
            label="Tools"
            items={[
              {
                label: "Tag …",
                note: "With a WD14 tagger",
                onChoose: () => setAsked({ task: "tag", title: `Tag ${name}`, initial: place }),
              },
              {
                label: "Caption …",
                note: "In sentences, with Florence-2, BLIP or a chat model",
                onChoose: () => setAsked({ task: "caption", title: `Caption ${name}`, initial: place }),
              },
              {
                label: "Lint …",
                note: "Find damaged, missing and duplicate images, and long captions",
                onChoose: () => setWork("lint"),
              },
              {
                label: "Build JSONL …",
                note: "For export, or for training elsewhere",
                isDisabled: found?.kind === "jsonl",
                onChoose: () => setWork("convert"),
              },
              {
                label: "Export …",
                note: "As Kohya folders, webdataset or parquet",
                isDisabled: found?.kind !== "jsonl",
                onChoose: () => setWork("export"),
              },
            ]}
          />
          <Button onClick={() => setEditing(true)} disabled={!total}>
            {" "}
            Bulk edit captions{" "}
          </Button>
        </>
      }
    >
      {(error || trouble) && (
        <div className="mb-4">
          <ErrorAlert error={error ?? trouble} />
        </div>
      )}
      {(found?.kind === "jsonl" ? [found] : jsonls).map((each) => (
        <OutdatedNotice key={each.name} name={each.name} />
      ))}
      {(!found || found.kind === "folder") && <Uploader dataset={name} />}
      <div className="mb-3 flex flex-wrap items-center gap-3">
        <SearchInput
          className="min-w-48 flex-1"
          label="Search captions and names"
          value={search}
          onSearch={(words) => filter({ search: words })}
        />
        <ToggleGroup
          label="Filter images"
          value={show}
          onChange={(next) => filter({ show: next })}
          options={[
            { value: "all", label: "All" },
            { value: "bare", label: "No caption" },
            { value: "bad", label: facts?.problems ? `Problems ${facts.problems}` : "Problems" },
          ]}
        />
        <span className="figure text-xs text-muted-foreground">{count(total)}</span>
      </div>
      <div className={cx("grid items-start gap-4", hasAside && "lg:grid-cols-[minmax(0,1fr)_20rem]")}>
        {facts && total === 0 ? (
          <Empty title={facts.images === 0 ? "No images yet" : "No image matches"}>
            {facts.images === 0 ? "Drop images above." : "Change the search, or show all images."}
          </Empty>
        ) : facts && total !== undefined ? (
          <Gallery total={total} chosen={isThere ? chosen : null} at={at} onSee={onSee} onChoose={choose} />
        ) : (
          <Skeleton className="h-96" />
        )}
        <div className="grid gap-4">
          {picture && chosen !== null && (
            <CaptionEditor
              key={picture.item}
              dataset={name}
              picture={picture}
              place={isThere ? `${count(chosen + 1)} of ${count(total)}` : "no longer in this list"}
              onMove={onMove}
              onClose={onClose}
              onTag={onTag}
            />
          )}
          <Tags dataset={name} wanted={wanted} onTag={onTag} />
        </div>
      </div>
      {found && (
        <DatasetTasks
          dataset={found}
          asked={work}
          onClose={() => setWork(null)}
          onItem={(item) => {
            setWork(null);
            filter({ show: "all", search: item });
          }}
        />
      )}
      <TaskDialog asked={asked} onClose={() => setAsked(null)} />
      <BulkEdit
        dataset={name}
        wanted={wanted}
        total={total ?? 0}
        isOpen={isEditing}
        onClose={() => setEditing(false)}
      />
    </Page>
  );
}
