"use client";
import { useQuery } from "@tanstack/react-query";
import { cx } from "@/components/ui/classes";
import { library, type Model } from "@/lib/api/models";
import { bytes, params } from "@/lib/format";
import { at } from "@/lib/json";
import { useForm } from "./context";

const PARTS = [
  { name: "VAE", key: "vae_path" },
  { name: "T5", key: "t5_path" },
];

/** A base in a few words: family, variant, version, size. */
export function wordsOf(model: Model | undefined): string {
  if (!model) return "";
  return [
    model.family ?? model.words,
    model.variant,
    model.version && `v${model.version}`,
    bytes(model.size),
    model.precision,
    params(model.num_params),
  ]
    .filter(Boolean)
    .join(" · ");
}

/** The bases that are here, by their path. */
export function useBases(): ReadonlyMap<string, Model> {
  const { data } = useQuery({ ...library, retry: false });
  return new Map((data?.models ?? []).map((model) => [model.path, model]));
}

/** The base that is chosen, and where what belongs to it lies. */
export function BaseCard({ model }: { model: Model | undefined }) {
  const { whole } = useForm();
  if (!model) return null;
  return (
    <div className="grid gap-1 rounded border bg-sunken px-3 py-2 text-xs">
      <p className="font-medium [overflow-wrap:anywhere]">{model.title ?? model.name}</p>
      <p className="text-ink-soft">{wordsOf(model)}</p>
      {model.problem && <p className="text-madder">{model.problem}</p>}
      <dl className="grid grid-cols-[2rem_minmax(0,1fr)] gap-x-2">
        {PARTS.map(({ name, key }) => {
          const path = String(at(whole, ["model", key]) ?? "");
          return (
            <div key={key} className="contents">
              <dt className="text-ink-faint">{name}</dt>
              <dd className={cx("figure truncate", !path && "text-weld")} title={path}>
                {path || "not chosen"}
              </dd>
            </div>
          );
        })}
      </dl>
    </div>
  );
}
