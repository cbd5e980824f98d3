"use client";
import { useQuery } from "@tanstack/react-query";
import { useSearchParams } from "next/navigation";
import { type ReactNode, useEffect, useMemo, useState } from "react";
import { FormContext } from "@/components/form/form-context";
import { FormSection } from "@/components/form/form-section";
import { Button, LinkButton } from "@/components/ui/button";
import { Confirm } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { SearchInput } from "@/components/ui/inputs";
import { Empty, Page, Panel, Skeleton } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { useToasts } from "@/components/ui/toasts";
import { useDeferredMount } from "@/hooks/use-deferred-mount";
import { useDraft } from "@/hooks/use-draft";
import { byPath, useValidation } from "@/hooks/use-validation";
import { type Preset, Problem } from "@/lib/api/client";
import { runConfig, trainerConfig, trainerModels, trainers } from "@/lib/api/queries";
import { hintsOf } from "@/lib/config-hints";
import { EMPTY_DRAFT } from "@/lib/draft";
import { sectionsOf } from "@/lib/form-fields";
import { changesFrom, laidOver, type Tree } from "@/lib/json";
import { BaseModelCards } from "./base-model-cards";
import { ConfigImport } from "./config-import";
import { ConfigPreview } from "./config-preview";
import { KohyaDatasetSelect } from "./dataset-select";
import { Essentials } from "./essentials";
import { JsonPanel } from "./json-panel";
import { Preflight } from "./preflight";
import { Presets } from "./presets";
import { SectionNav } from "./section-nav";
import { StartPanel } from "./start-panel";
import { useVisibleSections } from "./use-visible-sections";

const KOHYA_NETWORK = [["model", "pretrained_model_name_or_path"]];
/** Sections in the first render, enough to fill a screen. */
const FIRST_SECTIONS = 2;

interface Props {
  trainer: string;
  title: string;
  lead: string;
  /** Shown if the studio does not have this trainer. */
  missing: ReactNode;
}

/** Load the configuration of the run in the URL. */
function useConfigOfRun(setConfig: (config: Tree) => void, defaults: Tree | undefined) {
  const from = useSearchParams().get("from");
  const { data } = useQuery({ ...runConfig(from ?? ""), enabled: from !== null });
  const { notify } = useToasts();
  const config = data?.config as Tree | undefined;
  useEffect(() => {
    if (!config || !defaults || !from) return;
    setConfig((changesFrom(defaults, config) ?? {}) as Tree);
    notify(`Loaded the configuration of ${from}.`);
    history.replaceState(null, "", window.location.pathname);
  }, [config, defaults, from, setConfig, notify]);
}

/** The trainer's schema, the draft and its validation. */
function useTrainingForm(trainer: string) {
  const { data: schema, error, refetch } = useQuery(trainerConfig(trainer));
  const { data: candidates = {} } = useQuery({ ...trainerModels(trainer), enabled: schema !== undefined });
  const defaults = schema?.defaults as Tree | undefined;
  const [presetName, setPresetName] = useState<string | null>(null);
  const preset = schema?.presets.find((each) => each.name === presetName);
  const form = useDraft(trainer, defaults, preset?.config as Tree | undefined);
  const { draft, isLoaded, setConfig } = form;
  useEffect(() => setPresetName(draft.preset), [draft.preset]);
  useConfigOfRun(setConfig, defaults);
  const validation = useValidation({ trainer }, draft.config, isLoaded && schema !== undefined);
  const problems = useMemo(() => byPath(validation.verdict?.problems ?? []), [validation.verdict]);
  const sections = useMemo(() => (schema ? sectionsOf(schema.schema as Tree) : []), [schema]);
  return {
    ...form,
    schema,
    error,
    refetch,
    candidates,
    defaults,
    problems,
    sections,
    isChecking: validation.isChecking,
    // Wait for the first validation: its messages at many fields would shift the layout.
    isReady: isLoaded && (validation.verdict !== undefined || validation.error !== null),
  };
}

function ResetButton({ onReset }: { onReset: () => void }) {
  const [isOpen, setOpen] = useState(false);
  return (
    <>
      <Button kind="quiet" onClick={() => setOpen(true)}>
        Reset form
      </Button>
      <Confirm
        title="Reset form?"
        isOpen={isOpen}
        onClose={() => setOpen(false)}
        onConfirm={onReset}
        confirm="Reset form"
      >
        This clears all settings in this form. Export them first to keep a copy.
      </Confirm>
    </>
  );
}

function KohyaEssentials() {
  return (
    <Panel>
      <div className="mb-5 sm:w-1/2">
        <KohyaDatasetSelect />
      </div>
      <BaseModelCards trainer="kohya" keys={KOHYA_NETWORK}>
        <div>
          <LinkButton size="small" href="/models/">
            Models
          </LinkButton>
        </div>
      </BaseModelCards>
    </Panel>
  );
}

/** The search field and the detail level. */
function FieldFilter({ view }: { view: ReturnType<typeof useVisibleSections> }) {
  return (
    <div className="flex flex-wrap items-center justify-between gap-3">
      <SearchInput
        className="min-w-48 flex-1"
        label="Search fields"
        hint="Search fields, e.g. rate, prompts, cache"
        value={view.search}
        onSearch={view.setSearch}
      />
      {view.hasSimple && (
        <ToggleGroup
          label="Detail level"
          value={view.isAdvanced ? 1 : 0}
          onChange={(value) => view.setAdvanced(value === 1)}
          options={[
            { value: 0, label: "Simple" },
            { value: 1, label: "Advanced" },
          ]}
        />
      )}
    </div>
  );
}

export function TrainingPage({ trainer, title, lead, missing }: Props) {
  const form = useTrainingForm(trainer);
  const { schema, error, defaults, draft, base, whole, problems, sections } = form;
  const { set, setConfig, patch, isChecking } = form;
  const { data: installed } = useQuery(trainers);
  const hasPreflight = installed?.find((each) => each.name === trainer)?.has_preflight;
  const view = useVisibleSections(sections, { whole, base, problems });
  const isDeferredMounted = useDeferredMount(schema !== undefined);

  if (error && !schema) {
    const isMissing = error instanceof Problem && error.status === 404;
    return (
      <Page title={title} lead={lead}>
        {isMissing ? missing : <ErrorAlert error={error} onRetry={() => void form.refetch()} />}
      </Page>
    );
  }
  if (!schema || !defaults || !form.isReady) {
    return (
      <Page title={title} lead={lead} wide>
        <div className="grid gap-4 lg:grid-cols-[minmax(0,1fr)_22rem]">
          <Skeleton className="h-[40rem]" />
          <Skeleton className="h-80" />
        </div>
      </Page>
    );
  }

  const choosePreset = (preset: Preset | null) => {
    // Replace the old preset's values and keep the user's own.
    const own = changesFrom(base, whole) ?? {};
    const merged = laidOver(laidOver(defaults, (preset?.config ?? {}) as Tree), own);
    patch({ preset: preset?.name ?? null, config: (changesFrom(defaults, merged) ?? {}) as Tree });
  };
  const takeImport = (config: Tree, isPart: boolean) =>
    isPart
      ? setConfig(laidOver(draft.config, config) as Tree)
      : patch({ preset: null, config: (changesFrom(defaults, laidOver(defaults, config)) ?? {}) as Tree });

  return (
    <FormContext value={{ whole, base, problems, candidates: form.candidates, set }}>
      <Page title={title} lead={lead} wide actions={<ResetButton onReset={() => patch(EMPTY_DRAFT)} />}>
        <div className="grid items-start gap-5 lg:grid-cols-[minmax(0,1fr)_21rem] xl:grid-cols-[10rem_minmax(0,1fr)_23rem]">
          <SectionNav sections={view.shown} whole={whole} base={base} problems={problems} />
          <div className="grid min-w-0 gap-4">
            {schema.presets.length > 0 && (
              <Presets presets={schema.presets} chosen={draft.preset} onChoose={choosePreset} />
            )}
            {trainer === "flow" && <Essentials />}
            {trainer === "kohya" && <KohyaEssentials />}
            <ConfigImport trainer={trainer} sections={sections} onTake={takeImport} />
            <FieldFilter view={view} />
            {view.shown.length === 0 && (
              <Empty title="No matching fields">Search by key, help text or section.</Empty>
            )}
            {view.shown.slice(0, isDeferredMounted ? undefined : FIRST_SECTIONS).map((section) => (
              <FormSection key={section.name} section={section} isShown={view.isShown} />
            ))}
          </div>
          <aside className="grid min-w-0 gap-4 lg:sticky lg:top-4">
            <StartPanel
              trainer={trainer}
              draft={draft}
              problems={problems}
              isChecking={isChecking}
              onPatch={patch}
              onShow={view.reveal}
              hints={trainer === "flow" ? hintsOf(whole) : []}
            />
            {hasPreflight && (
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
