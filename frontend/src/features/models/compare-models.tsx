"use client";
import { Dialog } from "@/components/ui/dialog";
import type { Model } from "@/lib/api/models";
import { bytes, moment, params } from "@/lib/format";

const FACTS: { name: string; of: (model: Model) => string | number | null | undefined | false }[] = [
  { name: "Type", of: (model) => model.description },
  { name: "Variant", of: (model) => model.variant },
  { name: "Version", of: (model) => model.version },
  { name: "Architecture", of: (model) => model.architecture },
  { name: "Size", of: (model) => bytes(model.size) },
  { name: "Precision", of: (model) => model.precision },
  { name: "Parameters", of: (model) => params(model.num_params) },
  { name: "Parts", of: (model) => model.parts.join(", ") },
  { name: "LoRA type", of: (model) => model.adapter?.kind },
  { name: "Rank", of: (model) => model.adapter?.rank },
  { name: "Alpha", of: (model) => model.adapter?.alpha },
  { name: "Layers", of: (model) => model.adapter?.num_layers },
  { name: "Key format", of: (model) => model.adapter?.naming },
  { name: "Base model", of: (model) => model.adapter?.base },
  { name: "Modified", of: (model) => moment(model.time) },
  { name: "SHA-256", of: (model) => model.sha256 },
  { name: "Path", of: (model) => model.path },
  { name: "Problem", of: (model) => model.problem },
];

/** A table of the models' properties; differences stand out. */
export function CompareModels({ models, onClose }: { models: Model[]; onClose: () => void }) {
  const rows = FACTS.map(({ name, of }) => ({
    name,
    values: models.map((model) => String(of(model) || "")),
  }));
  return (
    <Dialog title={`Compare ${models.length} models`} isOpen onClose={onClose} width="max-w-6xl">
      <div className="overflow-x-auto" role="region" aria-label="Facts" tabIndex={0}>
        <table className="w-full text-sm">
          <thead>
            <tr className="border-b text-left">
              <td className="w-28" />
              {models.map((model) => (
                <th
                  key={model.path}
                  scope="col"
                  className="min-w-44 px-3 py-2 font-semibold [overflow-wrap:anywhere]"
                >
                  {model.title ?? model.name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody className="divide-y">
            {rows
              .filter((row) => row.values.some(Boolean))
              .map((row) => {
                const isSame = new Set(row.values).size === 1;
                return (
                  <tr key={row.name} className="align-top">
                    <th scope="row" className="label py-1.5 pr-3 text-left">
                      {row.name}
                    </th>
                    {row.values.map((value, index) => (
                      <td
                        key={index}
                        className={`figure px-3 py-1.5 text-xs [overflow-wrap:anywhere] ${isSame ? "text-muted-foreground" : ""}`}
                      >
                        {value || "–"}
                      </td>
                    ))}
                  </tr>
                );
              })}
          </tbody>
        </table>
      </div>
    </Dialog>
  );
}
