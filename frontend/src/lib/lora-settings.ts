/** The training settings in a model file's header. */
import { api, unwrap } from "@/lib/api/client";
import type { Model } from "@/lib/api/models";
import type { SourceFile } from "./import-files";

/** Options that sd-scripts stores in the header as `ss_` plus their name. */
const KEPT = [
  "network_module",
  "network_dim",
  "network_alpha",
  "network_dropout",
  "learning_rate",
  "unet_lr",
  "text_encoder_lr",
  "lr_scheduler",
  "lr_warmup_steps",
  "max_train_steps",
  "gradient_accumulation_steps",
  "gradient_checkpointing",
  "mixed_precision",
  "full_fp16",
  "seed",
  "clip_skip",
  "max_token_length",
  "max_grad_norm",
  "min_snr_gamma",
  "noise_offset",
  "multires_noise_iterations",
  "multires_noise_discount",
  "adaptive_noise_scale",
  "ip_noise_gamma",
  "zero_terminal_snr",
  "debiased_estimation",
  "prior_loss_weight",
  "scale_weight_norms",
  "loss_type",
  "huber_schedule",
  "huber_c",
  "guidance_scale",
  "timestep_sampling",
  "sigmoid_scale",
  "discrete_flow_shift",
  "model_prediction_type",
  "output_name",
] as const;

type Metadata = Readonly<Record<string, string>>;

const PYTHON_BOOLEANS: Readonly<Record<string, boolean>> = { True: true, False: false };

/** A header's JSON object as `k=v k=v`. */
function args(text: string | undefined): string {
  try {
    const header: unknown = JSON.parse(text ?? "{}");
    if (typeof header !== "object" || header === null) return "";
    return Object.entries(header)
      .map(([key, value]) => `${key}=${value}`)
      .join(" ");
  } catch {
    return "";
  }
}

/** The name and simple arguments of `torch.optim.adamw.AdamW(betas=(0.9, 0.99),eps=1e-8)`. */
function optimizer(text: string): { optimizer: string; optimizer_args: string } {
  const [, path = text, inside = ""] = /^([^(]+)(?:\((.*)\))?$/.exec(text) ?? [];
  const parts = inside.split(/,(?![^()]*\))/).map((part) => part.replaceAll(" ", ""));
  return {
    optimizer: path.split(".").at(-1) ?? path,
    optimizer_args: parts.filter((part) => part.includes("=")).join(" "),
  };
}

/** Kohya's `ss_` keys in the format of kohya_ss, for our importer; null if there are none. */
export function fromKohya(metadata: Metadata): Record<string, string | boolean> | null {
  const settings: Record<string, string | boolean> = {};
  for (const key of KEPT) {
    const value = metadata[`ss_${key}`];
    if (value !== undefined && value !== "None" && value !== "")
      settings[key] = PYTHON_BOOLEANS[value] ?? value;
  }
  if (settings.debiased_estimation !== undefined) {
    settings.debiased_estimation_loss = settings.debiased_estimation;
    delete settings.debiased_estimation;
  }
  if (Object.keys(settings).length === 0) return null;
  const base = metadata.ss_base_model_version ?? "";
  if (/^sdxl/i.test(base)) settings.sdxl = true;
  else if (/chroma/i.test(base)) settings.model_type = "chroma";
  else if (/^flux/i.test(base)) settings.flux1_checkbox = true;
  if (metadata.ss_optimizer) Object.assign(settings, optimizer(metadata.ss_optimizer));
  settings.network_args = args(metadata.ss_network_args);
  return settings;
}

export interface LoraSettings {
  trainer: "flow" | "kohya";
  /** The phrase for the import report. */
  kind: string;
  file: SourceFile;
}

/** Return the training settings in a header, or null. */
export function trainingOf(name: string, metadata: Metadata): LoraSettings | null {
  const ours = metadata["flowloom.config"];
  if (ours)
    return {
      trainer: "flow",
      kind: "the settings this file was trained with",
      file: { name, text: ours },
    };
  const kohya = fromKohya(metadata);
  if (!kohya) return null;
  const text = JSON.stringify(kohya);
  return { trainer: "kohya", kind: "the sd-scripts settings in this file", file: { name, text } };
}

export interface FileLocation {
  root: string;
  /** Relative to the root. */
  path: string;
}

/** A model's root and relative path, as the API expects them. */
export function locationOf(model: Pick<Model, "root" | "path">, folder: string): FileLocation {
  return { root: model.root, path: model.path.slice(folder.length).replace(/^[\\/]+/, "") };
}

/** Read the training settings from a file's header. */
export async function readLoraSettings({ root, path }: FileLocation): Promise<LoraSettings | null> {
  const { metadata } = await unwrap(api.GET("/api/models/details", { params: { query: { root, path } } }));
  return trainingOf(path.split("/").at(-1) ?? path, metadata);
}
