"use client";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import Link from "next/link";
import { useRef, useState } from "react";
import { TaskDialog, type TaskRequest } from "@/components/form/task-form";
import { Button } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Checkbox } from "@/components/ui/inputs";
import { Empty, Page, Panel, Skeleton } from "@/components/ui/panel";
import { StateBadge } from "@/components/ui/state-badge";
import { RunProgress, runHref } from "@/features/run/run-progress";
import { api, Problem, unwrap } from "@/lib/api/client";
import { library, type Model } from "@/lib/api/models";
import { ACTIVE } from "@/lib/api/queries";
import { bytes, duration, params } from "@/lib/format";
import { CompareModels } from "./compare-models";
import { DeleteFile, UseSettingsButton } from "./file-actions";
import { OffersPanel } from "./offers-panel";

function AdapterFacts({ model }: { model: Model }) {
  const facts = model.adapter;
  if (!facts) return null;
  const parts = [
    facts.kind,
    facts.rank != null &&
      `rank ${facts.rank}${facts.max_rank && facts.max_rank !== facts.rank ? `–${facts.max_rank}` : ""}`,
    facts.alpha != null && `alpha ${facts.alpha}`,
    `${facts.num_layers} layers`,
    `${facts.naming} names`,
    facts.base && `for ${facts.base}${facts.base_evidence === "name" ? " (from its file name)" : ""}`,
    facts.has_text_encoder && "with text encoder",
  ];
  return <p className="text-xs text-secondary-foreground">{parts.filter(Boolean).join(" · ")}</p>;
}

interface RowProps {
  model: Model;
  isChosen: boolean;
  onChoose: (isChosen: boolean) => void;
}

function Row({ model, isChosen, onChoose }: RowProps) {
  return (
    <li className="grid grid-cols-[auto_minmax(0,1fr)] gap-x-3 gap-y-0.5 px-4 py-2.5 has-checked:bg-accent sm:grid-cols-[auto_minmax(0,1fr)_auto]">
      <Checkbox
        className="mt-0.5"
        aria-label={`Select ${model.name}`}
        checked={isChosen}
        onChange={(event) => onChoose(event.target.checked)}
      />
      <div className="min-w-0">
        <p className="truncate text-sm font-medium" title={model.path}>
          {model.title ?? model.name}
          {(model.variant || model.version) && (
            <span className="ml-2 text-xs font-normal text-primary">
              {[model.variant, model.version && `v${model.version}`].filter(Boolean).join(" ")}
            </span>
          )}
        </p>
        <p className="text-xs text-secondary-foreground">{model.description}</p>
        <AdapterFacts model={model} />
        {model.problem && <p className="text-xs text-destructive">{model.problem}</p>}
        {model.is_untrained && (
          <p className="text-xs text-warning">Untrained network: a LoRA trained on it learns nothing.</p>
        )}
        <code className="figure block truncate text-2xs text-muted-foreground">{model.path}</code>
      </div>
      <div className="col-start-2 flex items-center gap-2 sm:col-start-3 sm:items-start">
        <div className="figure flex flex-1 gap-3 text-xs text-secondary-foreground sm:flex-col sm:items-end sm:gap-0">
          <span>{bytes(model.size)}</span>
          <span>{model.precision}</span>
          <span>{params(model.num_params)}</span>
        </div>
        <div className="sm:order-first">
          <UseSettingsButton model={model} />
        </div>
        <DeleteFile model={model} />
      </div>
    </li>
  );
}

function Library() {
  const { data, error, refetch } = useQuery(library);
  const [chosen, setChosen] = useState<readonly string[]>([]);
  const [isComparing, setComparing] = useState(false);
  if (error && !data) {
    const isUnsupported = error instanceof Problem && error.status === 404;
    return isUnsupported ? (
      <Empty title="This studio has no model library">Enter file paths in the training form instead.</Empty>
    ) : (
      <ErrorAlert error={error} onRetry={() => void refetch()} />
    );
  }
  if (!data) return <Skeleton className="h-64" />;
  const byPath = new Map(data.models.map((model) => [model.path, model]));
  const inFamily = new Set(data.families.flatMap((family) => family.paths));
  const groups = [
    ...data.families.map((family) => ({
      name: family.name,
      size: family.size,
      models: family.paths.flatMap((path) => byPath.get(path) ?? []),
    })),
    { name: "Other", size: 0, models: data.models.filter((model) => !inFamily.has(model.path)) },
  ].filter((group) => group.models.length > 0);
  if (groups.length === 0) {
    return (
      <div className="rounded-lg border bg-card">
        <Empty title="No models yet">
          Download the files required for Chroma, or copy files into {data.roots.join(", ")}. Models are
          recognized by their headers.
        </Empty>
      </div>
    );
  }
  return (
    <div className="grid gap-4">
      <div
        className="flex min-h-7 flex-wrap items-center gap-2 text-xs text-secondary-foreground"
        role="toolbar"
        aria-label="Selection"
      >
        <span>{chosen.length > 0 ? `${chosen.length} selected` : "Select models to compare"}</span>
        <Button size="small" disabled={chosen.length < 2} onClick={() => setComparing(true)}>
          {" "}
          Compare{" "}
        </Button>
        {chosen.length > 0 && (
          <Button size="small" kind="quiet" onClick={() => setChosen([])}>
            {" "}
            Clear selection{" "}
          </Button>
        )}
      </div>
      {isComparing && (
        <CompareModels
          models={chosen.flatMap((path) => byPath.get(path) ?? [])}
          onClose={() => setComparing(false)}
        />
      )}
      {groups.map((group) => (
        <Panel
          key={group.name}
          title={group.name}
          flush
          actions={
            <span className="figure text-xs text-muted-foreground">
              {group.size ? bytes(group.size) : ""}
            </span>
          }
        >
          <ul className="divide-y">
            {group.models.map((model) => (
              <Row
                key={model.path}
                model={model}
                isChosen={chosen.includes(model.path)}
                onChoose={(is) =>
                  setChosen((old) => (is ? [...old, model.path] : old.filter((path) => path !== model.path)))
                }
              />
            ))}
          </ul>
        </Panel>
      ))}
    </div>
  );
}

/** Active downloads. */
function Downloads() {
  const client = useQueryClient();
  const active = useRef<readonly string[]>([]);
  const { data } = useQuery({
    queryKey: ["runs", "download"],
    queryFn: async () => {
      const page = await unwrap(
        api.GET("/api/runs", { params: { query: { trainer: "download", limit: 10 } } }),
      );
      const downloads = page.runs.filter((run) => ACTIVE.has(run.state));
      const ids = downloads.map((run) => run.id);
      // Only after a download ended: the request reads the headers of all files.
      if (active.current.some((id) => !ids.includes(id)))
        void client.invalidateQueries({ queryKey: ["models"] });
      active.current = ids;
      return downloads;
    },
    refetchInterval: 1500,
  });
  if (!data || data.length === 0) return null;
  return (
    <Panel title="Downloading" flush>
      <ul className="divide-y">
        {data.map((run) => (
          <li key={run.id} className="grid gap-1 px-4 py-2.5">
            <Link
              href={runHref(run.id)}
              className="flex items-center justify-between gap-3 text-sm font-medium hover:underline"
            >
              <span className="truncate">{run.id}</span>
              <StateBadge state={run.state} />
            </Link>
            <RunProgress run={run} />
            <span className="text-xs text-muted-foreground">
              {bytes(run.samples_per_s)}/s · {duration(run.eta_s)} left
            </span>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

export function ModelsPage() {
  const [request, setRequest] = useState<TaskRequest | null>(null);
  return (
    <Page title="Models" lead="Model files in the studio's folders, identified by their headers.">
      <div className="grid items-start gap-4 lg:grid-cols-[minmax(0,1.600fr)_minmax(0,1fr)]">
        <Library />
        <div className="grid gap-4">
          <Downloads />
          <OffersPanel
            onCustom={() =>
              setRequest({ task: "download", title: "Download models", initial: { items: [{}] } })
            }
          />
        </div>
      </div>
      <TaskDialog request={request} onClose={() => setRequest(null)} />
    </Page>
  );
}
