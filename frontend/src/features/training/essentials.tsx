"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useForm } from "@/components/form/form-context";
import { Button, LinkButton } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { CheckIcon, DownloadIcon } from "@/components/ui/icons";
import { Input, Select } from "@/components/ui/inputs";
import { Panel } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { useToasts } from "@/components/ui/toasts";
import { useDebounced } from "@/hooks/use-validation";
import { download, missingFiles } from "@/lib/api/models";
import { numberFrom, textOf } from "@/lib/form-fields";
import { bytes } from "@/lib/format";
import { at, type Json, type Tree } from "@/lib/json";
import { BaseModelCards } from "./base-model-cards";
import { DatasetSelect } from "./dataset-select";
import { FLOW_NETWORK } from "./network-keys";

/** Files that base models need, each family some of them. */
const PARTS = [
  { name: "VAE", key: "vae_path" },
  { name: "T5", key: "t5_path" },
  { name: "CLIP", key: "clip_path" },
  { name: "LLM", key: "text_encoder_path" },
];

function BaseModel() {
  const { whole, set } = useForm();
  const client = useQueryClient();
  const { notify, notifyError } = useToasts();
  const section = useDebounced((at(whole, ["model"]) ?? {}) as Tree);
  const { data } = useQuery(missingFiles(section));
  const available = data?.missing.filter((need) => need.local_paths.length > 0) ?? [];
  const missing = data?.missing.filter((need) => need.local_paths.length === 0) ?? [];
  const fetchMissing = useMutation({
    mutationFn: download,
    onSuccess: (run) => {
      notify(`${run.id} is queued.`, "Fill in the paths when it has finished.");
      void client.invalidateQueries({ queryKey: ["runs"] });
    },
    onError: notifyError,
  });
  const fill = () => {
    for (const need of available) set(need.path.split("."), need.local_paths[0] ?? "");
  };
  const parts = PARTS.map((part) => ({ ...part, path: String(at(whole, ["model", part.key]) ?? "") })).filter(
    ({ key, path }) => (data ? data.encoders.includes(`model.${key}`) : path),
  );
  const names = new Intl.ListFormat("en").format(parts.map((part) => part.name));
  return (
    <BaseModelCards trainer="flow" keys={FLOW_NETWORK}>
      <dl className="grid grid-cols-[2rem_minmax(0,1fr)] gap-x-2 text-xs">
        {parts.map(({ name, key, path }) => (
          <div key={key} className="contents">
            <dt className="text-muted-foreground">{name}</dt>
            <dd className={cx("figure truncate", !path && "text-warning")} title={path}>
              {path || "not set"}
            </dd>
          </div>
        ))}
      </dl>
      {data && data.missing.length === 0 ? (
        <p className="flex items-center gap-1 text-xs text-success">
          <CheckIcon className="size-3.5" /> {names} found.
        </p>
      ) : (
        <p className="text-xs text-muted-foreground">
          {missing.length > 0
            ? `Missing: ${missing.map((need) => need.offer.title).join(", ")}.`
            : names && `The paths of ${names} are not set.`}
        </p>
      )}
      <div className="flex flex-wrap gap-1.5">
        {available.length > 0 && (
          <Button size="small" onClick={fill}>
            {missing.length > 0 ? "Use the files found in Models" : `Use the ${names} found in Models`}
          </Button>
        )}
        {missing.length > 0 && data?.download && (
          <Button
            size="small"
            isBusy={fetchMissing.isPending}
            onClick={() => data.download && fetchMissing.mutate(data.download)}
          >
            <DownloadIcon className="size-3.5" /> Download,{" "}
            {bytes(missing.reduce((sum, need) => sum + need.offer.size, 0))}
          </Button>
        )}
        <LinkButton size="small" href="/models/">
          Models
        </LinkButton>
      </div>
    </BaseModelCards>
  );
}

type Method = "lora" | "rotation" | "full";

export function methodOf(whole: Tree): Method {
  if (at(whole, ["lora"])) return "lora";
  return at(whole, ["training", "change_layer_every"]) ? "rotation" : "full";
}

/** The initial number of checkpoints to keep. */
const DEFAULT_KEEP_LAST = 4;
const ROTATION: Tree = { change_layer_every: 20, trained_single_blocks: 2, trained_double_blocks: 1 };

function MethodSelect() {
  const { whole, set } = useForm();
  const method = methodOf(whole);
  const choose = (next: Method) => {
    set(["lora"], next === "lora" ? ((at(whole, ["lora"]) as Json) ?? { rank: 16 }) : null);
    for (const [key, value] of Object.entries(ROTATION)) {
      set(["training", key], next === "rotation" ? (at(whole, ["training", key]) ?? value) : null);
    }
  };
  const notes: Record<Method, string> = {
    lora: "A small adapter on a frozen base model: a few megabytes, little memory.",
    rotation: "Trains all weights, a few blocks at a time: fits in 24 GB.",
    full: "Trains all weights at once: needs the most memory.",
  };
  return (
    <div className="grid content-start gap-1.5">
      <p className="label">Method</p>
      <div>
        <ToggleGroup
          label="Method"
          value={method}
          onChange={choose}
          options={[
            { value: "lora", label: "LoRA" },
            { value: "rotation", label: "Rotation" },
            { value: "full", label: "Full" },
          ]}
        />
      </div>
      <p className="text-xs text-muted-foreground">{notes[method]}</p>
    </div>
  );
}

const AUTO = "auto";

/** The save interval and the number of checkpoints to keep. */
function CheckpointFields() {
  const { whole, set } = useForm();
  const kept = at(whole, ["checkpoint", "keep_last"]) ?? AUTO;
  const all = methodOf(whole) === "lora" ? "All" : "All that fit on disk";
  const write = (path: string[]) => (event: { target: { value: string } }) =>
    set(path, numberFrom(event.target.value));
  return (
    <fieldset className="grid min-w-0 grid-cols-[minmax(0,1fr)] content-start gap-1.5">
      <legend className="label mb-1.5">Checkpoints</legend>
      <div className="flex flex-wrap items-center gap-x-4 gap-y-2 text-xs">
        <label className="flex items-center gap-2">
          Save every
          <Input
            className="figure w-20!"
            inputMode="numeric"
            value={textOf(at(whole, ["training", "save_every"]))}
            onChange={write(["training", "save_every"])}
          />
          steps
        </label>
        <label className="flex min-w-0 items-center gap-2">
          Keep
          <Select
            className="w-auto! min-w-0"
            value={kept === AUTO ? AUTO : "last"}
            onChange={(event) =>
              set(["checkpoint", "keep_last"], event.target.value === AUTO ? AUTO : DEFAULT_KEEP_LAST)
            }
          >
            <option value={AUTO}>{all}</option>
            <option value="last">The last</option>
          </Select>
        </label>
        {kept !== AUTO && (
          <Input
            className="figure w-16!"
            inputMode="numeric"
            aria-label="Checkpoints to keep"
            value={textOf(kept)}
            onChange={write(["checkpoint", "keep_last"])}
          />
        )}
      </div>
    </fieldset>
  );
}

/** The settings without a sensible default: dataset, base model and method. */
export function Essentials() {
  return (
    <Panel>
      <div className="grid gap-5">
        <div className="grid gap-x-6 gap-y-5 sm:grid-cols-2">
          <DatasetSelect />
          <div className="grid grid-cols-[minmax(0,1fr)] content-start gap-5">
            <MethodSelect />
            <CheckpointFields />
          </div>
        </div>
        <BaseModel />
      </div>
    </Panel>
  );
}
