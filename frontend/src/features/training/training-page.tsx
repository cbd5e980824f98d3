"use client";
import { useQuery } from "@tanstack/react-query";
import { useSearchParams } from "next/navigation";
import { useEffect, useMemo, useState } from "react";
import { FormContext } from "@/components/form/form-context";
import { FormSection } from "@/components/form/form-section";
import { Button, LinkButton } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { Confirm } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { SearchInput } from "@/components/ui/inputs";
import { Empty, Page, Panel, Skeleton } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { useToasts } from "@/components/ui/toasts";
import { useDeferredMount } from "@/hooks/use-deferred-mount";
import { useDraft } from "@/hooks/use-draft";
import { byPath, useValidation } from "@/hooks/use-validation";
import { Problem } from "@/lib/api/client";
import { runConfig, trainerConfig, trainerModels, trainers } from "@/lib/api/queries";
import { hintsOf } from "@/lib/config-hints";
import { at, changesFrom, laidOver, same, type Tree } from "@/lib/json";
import { type Field, isFound, leavesOf, SIMPLE, sectionsOf } from "@/lib/schema";
import { BaseModelCards } from "./base-model-cards";
import { ConfigImport } from "./config-import";
import { ConfigPreview } from "./config-preview";
import { KohyaDatasetSelect } from "./dataset-select";
import { Essentials } from "./essentials";
import { JsonPanel } from "./json-panel";
import { Preflight } from "./preflight";
import { Presets } from "./presets";
import { StartPanel } from "./start-panel";

/** Sections in the first render, enough to fill a screen. */
const FIRST_SECTIONS = 2;

interface Props {
  trainer: string;
  title: string;
  lead: string;
  /** Shown if the studio does not have this trainer. */
  missing: React.ReactNode;
}

function Contents({
  sections,
  whole,
  base,
  problems,
}: {
  sections: Field[];
  whole: Tree;
  base: Tree;
  problems: ReadonlyMap<string, string[]>;
}) {
  return (
    <nav
      aria-label="Sections"
      className="sticky top-4 hidden max-h-[calc(100dvh-2rem)] overflow-y-auto xl:block"
    >
      <ul className="grid gap-px">
        {sections.map((section) => {
          const fields = leavesOf(section);
          const changed = fields.filter(
            (field) =>
              !same(
                at(whole, field.path) ?? field.initial ?? null,
                at(base, field.path) ?? field.initial ?? null,
              ),
          ).length;
          const paths = new Set(fields.map((field) => field.path.join(".")));
          const wrong = [...problems.keys()].filter(
            (path) => paths.has(path) || path.split(".")[0] === section.name,
          ).length;
          return (
            <li key={section.name}>
              <a
                href={`#section-${section.name}`}
                className="flex h-7 items-center justify-between gap-2 rounded px-2 text-xs text-secondary-foreground hover:bg-muted hover:text-foreground"
              >
                <span className="truncate">{section.title}</span>
                {wrong > 0 ? (
                  <span className="figure text-2xs font-semibold text-warning">
                    {wrong} error{wrong > 1 ? "s" : ""}
                  </span>
                ) : (
                  changed > 0 && <span className="figure text-2xs text-primary">{changed}</span>
                )}
              </a>
            </li>
          );
        })}
      </ul>
    </nav>
  );
}

/** Load the configuration of the run in the URL. */
function useFrom(setConfig: (config: Tree) => void, defaults: Tree | undefined) {
  const from = useSearchParams().get("from");
  const { data } = useQuery({ ...runConfig(from ?? ""), enabled: from !== null });
  const { say } = useToasts();
  const config = data?.config as Tree | undefined;
  useEffect(() => {
    if (!config || !defaults || !from) return;
    setConfig((changesFrom(defaults, config) ?? {}) as Tree);
    say(`Loaded the configuration of ${from}.`);
    history.replaceState(null, "", window.location.pathname);
  }, [config, defaults, from, setConfig, say]);
}

export function TrainingPage({ trainer, title, lead, missing }: Props) {
  const { data: made, error, refetch } = useQuery(trainerConfig(trainer));
  const { data: known } = useQuery(trainers);
  const canExamine = known?.find((each) => each.name === trainer)?.has_preflight;
  const { data: candidates } = useQuery({ ...trainerModels(trainer), enabled: made !== undefined });
  const [search, setSearch] = useState("");
  const isLater = useDeferredMount(made !== undefined);
  const [isAdvanced, setAdvanced] = useState(false);
  const [isClearing, setClearing] = useState(false);
  const defaults = made?.defaults as Tree | undefined;
  const [presetName, setPresetName] = useState<string | null>(null);
  const preset = made?.presets.find((each) => each.name === presetName);
  const { draft, isLoaded, base, whole, set, setConfig, patch } = useDraft(
    trainer,
    defaults,
    preset?.config as Tree | undefined,
  );
  useEffect(() => setPresetName(draft.preset), [draft.preset]);
  useFrom(setConfig, defaults);
  const check = useValidation(trainer, draft.config, isLoaded && made !== undefined);
  const { verdict, isChecking } = check;
  const problems = useMemo(() => byPath(verdict?.problems ?? []), [verdict]);
  const sections = useMemo(
    () => (made ? sectionsOf(made.schema as Tree, SIMPLE[trainer] ?? new Set()) : []),
    [made, trainer],
  );
  const words = useMemo(() => search.toLowerCase().split(/\s+/).filter(Boolean), [search]);

  if (error && !made) {
    const isMissing = error instanceof Problem && error.status === 404;
    return (
      <Page title={title} lead={lead}>
        {isMissing ? missing : <ErrorAlert error={error} onRetry={() => void refetch()} />}
      </Page>
    );
  }
  // Wait for the first validation: its messages at many fields would shift the layout.
  if (!made || !defaults || !isLoaded || (!verdict && !check.error)) {
    return (
      <Page title={title} lead={lead} wide>
        <div className="grid gap-4 lg:grid-cols-[minmax(0,1fr)_22rem]">
          <Skeleton className="h-[40rem]" />
          <Skeleton className="h-80" />
        </div>
      </Page>
    );
  }

  const hasSimple = sections.flatMap(leavesOf).some((field) => field.isSimple);
  const isWrong = (field: Field) =>
    [...problems.keys()].some(
      (path) => path === field.path.join(".") || path.startsWith(`${field.path.join(".")}.`),
    );
  const isChanged = (field: Field) =>
    !same(at(whole, field.path) ?? field.initial ?? null, at(base, field.path) ?? field.initial ?? null);
  const isShown = (field: Field) => {
    if (words.length > 0) return leavesOf(field).some((leaf) => isFound(leaf, words));
    return isAdvanced || !hasSimple || field.isSimple || isWrong(field) || isChanged(field);
  };
  const shown = sections.filter((section) =>
    section.kind === "group" && !section.isNullable
      ? section.fields.some(isShown)
      : words.length > 0
        ? isShown(section) || leavesOf(section).some((leaf) => isFound(leaf, words))
        : isAdvanced || !hasSimple || section.isSimple || section.fields.some(isShown) || isChanged(section),
  );
  const onShow = (path: string) => {
    setSearch("");
    setAdvanced(true);
    setTimeout(() => {
      const row = document.querySelector<HTMLElement>(
        `[data-field="${CSS.escape(path)}"], #section-${CSS.escape(path)}`,
      );
      row?.scrollIntoView({ block: "center" });
      row?.querySelector<HTMLElement>("input,select,textarea,button")?.focus();
    }, 60);
  };
  const choosePreset = (next: (typeof made.presets)[number] | null) => {
    // Replace the old preset's values and keep the user's own.
    const own = changesFrom(base, whole) ?? {};
    const onNew = laidOver(laidOver(defaults, (next?.config ?? {}) as Tree), own);
    patch({ preset: next?.name ?? null, config: (changesFrom(defaults, onNew) ?? {}) as Tree });
  };

  return (
    <FormContext value={{ whole, base, problems, candidates: candidates ?? {}, set }}>
      <Page
        title={title}
        lead={lead}
        wide
        actions={
          <Button kind="quiet" onClick={() => setClearing(true)}>
            {" "}
            Reset form{" "}
          </Button>
        }
      >
        <Confirm
          title="Reset form?"
          isOpen={isClearing}
          onClose={() => setClearing(false)}
          onConfirm={() => patch({ preset: null, name: "", devices: [], config: {} })}
          confirm="Reset form"
        >
          This clears all settings in this form. Export them first to keep a copy.
        </Confirm>
        <div className="grid items-start gap-5 lg:grid-cols-[minmax(0,1fr)_21rem] xl:grid-cols-[10rem_minmax(0,1fr)_23rem]">
          <Contents sections={shown} whole={whole} base={base} problems={problems} />
          <div className="grid min-w-0 gap-4">
            {made.presets.length > 0 && (
              <Presets presets={made.presets} chosen={draft.preset} onChoose={choosePreset} />
            )}
            {trainer === "flow" && <Essentials />}
            {trainer === "kohya" && (
              <Panel>
                <div className="mb-5 sm:w-1/2">
                  <KohyaDatasetSelect />
                </div>
                <BaseModelCards trainer="kohya" field={["model", "pretrained_model_name_or_path"]}>
                  <div>
                    <LinkButton size="small" href="/models/">
                      Models
                    </LinkButton>
                  </div>
                </BaseModelCards>
              </Panel>
            )}
            <ConfigImport
              trainer={trainer}
              sections={sections}
              onTake={(config, isPart) =>
                isPart
                  ? setConfig(laidOver(draft.config, config) as Tree)
                  : patch({
                      config: (changesFrom(defaults, laidOver(defaults, config)) ?? {}) as Tree,
                      preset: null,
                    })
              }
            />
            <div className="flex flex-wrap items-center justify-between gap-3">
              <SearchInput
                className="min-w-48 flex-1"
                label="Search fields"
                hint="Search fields, e.g. rate, prompts, cache"
                value={search}
                onSearch={setSearch}
              />
              {hasSimple && (
                <ToggleGroup
                  label="Detail level"
                  value={isAdvanced ? 1 : 0}
                  onChange={(value) => setAdvanced(value === 1)}
                  options={[
                    { value: 0, label: "Simple" },
                    { value: 1, label: "Advanced" },
                  ]}
                />
              )}
            </div>
            {shown.length === 0 && (
              <Empty title="No matching fields">Search by key, help text or section.</Empty>
            )}
            {shown.slice(0, isLater ? undefined : FIRST_SECTIONS).map((section) => (
              <FormSection key={section.name} section={section} isShown={isShown} />
            ))}
          </div>
          <aside className={cx("grid min-w-0 gap-4 lg:sticky lg:top-4")}>
            <StartPanel
              trainer={trainer}
              draft={draft}
              problems={problems}
              isChecking={isChecking}
              onPatch={patch}
              onShow={onShow}
              hints={trainer === "flow" ? hintsOf(whole) : []}
            />
            {canExamine && (
              <Preflight
                trainer={trainer}
                config={draft.config}
                isReady={problems.size === 0 && !isChecking}
              />
            )}
            <ConfigPreview
              trainer={trainer}
              config={draft.config}
              name={draft.name}
              isOpen={trainer !== "flow"}
            />
            <JsonPanel
              config={draft.config}
              whole={whole}
              base={base}
              onChange={setConfig}
              fileName={trainer === "flow" ? "training_config.json" : `${trainer}.json`}
            />
          </aside>
        </div>
      </Page>
    </FormContext>
  );
}
