"use client";
import { useQuery } from "@tanstack/react-query";
import { type ReactNode, useEffect, useId, useRef } from "react";
import { useForm } from "@/components/form/form-context";
import { cx } from "@/components/ui/class-names";
import { ChevronIcon } from "@/components/ui/icons";
import { Skeleton } from "@/components/ui/panel";
import { RadioCard } from "@/components/ui/radio-card";
import { library, type Model } from "@/lib/api/models";
import { trainerModels } from "@/lib/api/queries";
import { bytes, params } from "@/lib/format";
import { type Key, networkPath, networkPaths, networkValues } from "./network-keys";

const CARDS = "grid grid-cols-[repeat(auto-fill,minmax(min(15rem,100%),1fr))] gap-2";
const nameOf = (path: string) => path.split("/").slice(-2).join("/");
const joinDots = (...parts: (string | false | null | undefined)[]) => parts.filter(Boolean).join(" · ");

/** Run, checkpoint and file of `runs/fox/checkpoints/step_00000500/model.safetensors`. */
const checkpointOf = (path: string) => /([^/]+)\/checkpoints\/([^/]+)\/([^/]+)$/.exec(path)?.slice(1);

/** A base model's family, variant, version and size. */
function Facts({ path, model }: { path: string; model: Model | undefined }) {
  const [run, step, file] = checkpointOf(path) ?? [];
  if (run)
    return (
      <>
        <span className="truncate text-sm font-semibold" title={path}>
          {run}
        </span>
        <span className="figure truncate text-2xs text-muted-foreground">{joinDots(step, file)}</span>
      </>
    );
  return (
    <>
      <span className="truncate text-sm font-semibold" title={path}>
        {(model?.kind === "pipeline" ? model.name : (model?.title ?? model?.name)) ?? nameOf(path)}
      </span>
      <span className="text-xs text-secondary-foreground">
        {model
          ? joinDots(model.family ?? model.description, model.variant, model.version && `v${model.version}`)
          : "External file"}
      </span>
      {model && (
        <span className="figure text-2xs text-muted-foreground">
          {joinDots(bytes(model.size), model.precision, params(model.num_params))}
        </span>
      )}
      {model && <span className="figure truncate text-2xs text-muted-foreground">{nameOf(path)}</span>}
      {model?.is_untrained && (
        <span className="text-xs text-warning">Untrained network: a LoRA trained on it learns nothing.</span>
      )}
      {model?.problem && <span className="text-xs text-destructive">{model.problem}</span>}
    </>
  );
}

/** Choose the base model to train, in a scrolling list of cards. */
export function BaseModelCards({
  trainer,
  keys,
  children,
}: {
  trainer: string;
  /** The keys that can name the network. */
  keys: readonly Key[];
  children?: ReactNode;
}) {
  const { whole, set } = useForm();
  const path = networkPath(whole, keys);
  const { data, isPending } = useQuery({ ...library, retry: false });
  const { data: candidates = {}, isPending: isSearching } = useQuery({
    ...trainerModels(trainer),
    retry: false,
  });
  const group = useId();
  const list = useRef<HTMLDivElement>(null);
  const suggested = networkPaths(keys, candidates);
  const paths = [...(path && !suggested.includes(path) ? [path] : []), ...suggested];
  const modelByPath = new Map((data?.models ?? []).map((model) => [model.path, model]));
  const saved = paths.filter(checkpointOf);
  const others = paths.filter((each) => !saved.includes(each));
  const isUntrained = (each: string) => modelByPath.get(each)?.is_untrained === true;
  const bases = others.filter((each) => !isUntrained(each));
  const choose = (each: string) => {
    for (const [key, value] of networkValues(each, keys, candidates, whole)) set(key, value);
  };
  const card = (each: string) => (
    <RadioCard key={each} group={group} isChosen={each === path} onChoose={() => choose(each)}>
      <Facts path={each} model={modelByPath.get(each)} />
    </RadioCard>
  );
  const isWaiting = isPending || isSearching;
  // Scroll the list, not the page, to the selected model, which may be far down.
  useEffect(() => {
    const chosen = isWaiting ? null : list.current?.querySelector<HTMLElement>("[data-chosen]");
    if (chosen && list.current) list.current.scrollTop = chosen.offsetTop - list.current.offsetTop - 4;
  }, [isWaiting]);
  return (
    <div className="grid min-w-0 gap-1.5">
      <p className="label" id={`${group}-label`}>
        Base model
      </p>
      {isWaiting ? (
        <Skeleton className="h-36" />
      ) : paths.length > 0 ? (
        <div
          ref={list}
          role="radiogroup"
          aria-labelledby={`${group}-label`}
          className={cx("-mx-1 -mt-1 mb-1.5 max-h-72 overflow-y-auto p-1", CARDS)}
        >
          {bases.map(card)}
          {saved.length > 0 && (
            <details open={saved.includes(path) || bases.length === 0} className="group/saved col-span-full">
              <summary className="flex h-8 w-fit items-center gap-2 rounded px-1 text-xs font-medium text-secondary-foreground hover:text-foreground">
                <ChevronIcon className="size-3.5 transition-transform group-open/saved:rotate-90" />
                {saved.length} from runs
              </summary>
              <div className={CARDS}>{saved.map(card)}</div>
            </details>
          )}
          {others.filter(isUntrained).map(card)}
        </div>
      ) : (
        <p className="rounded-lg border border-dashed px-3 py-4 text-sm text-secondary-foreground">
          No base model yet. Download one, or copy its file into the studio's models folder.
        </p>
      )}
      {children}
    </div>
  );
}
