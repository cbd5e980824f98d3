"use client";
import { useState } from "react";
import { ToggleGroup } from "@/components/ui/tabs";
import type { Schemas } from "@/lib/api/client";
import { bytes, slowDown } from "@/lib/format";

/** Memory of common cards in GiB. */
export const CARDS = [8, 12, 16, 24, 32, 48, 80];
const METHODS = [
  { value: "lora", label: "LoRA" },
  { value: "rotation", label: "Rotation" },
  { value: "full", label: "Full" },
];
const RESOLUTIONS = [512, 1024].map((value) => ({ value, label: value }));

function CardRow({ fit }: { fit: Schemas["FitReport"] }) {
  return (
    <tr className="border-t align-top">
      <th scope="row" className="figure py-1 pr-2 text-left font-medium whitespace-nowrap">
        {fit.gib} GB
      </th>
      <td className="py-1">
        {fit.fits ? (
          fit.settings
        ) : (
          <span className="text-warning">does not fit: needs {bytes(fit.total)}</span>
        )}
      </td>
      <td className="figure py-1 pl-2 text-right whitespace-nowrap">
        {fit.fits && slowDown(fit.plan.slow_down)}
      </td>
    </tr>
  );
}

/** The settings with which a method fits cards of several sizes, one image at a time. */
export function CardTable({ fits }: { fits: Schemas["FitReport"][] }) {
  const [method, setMethod] = useState("lora");
  const [resolution, setResolution] = useState(1024);
  const shown = fits.filter((fit) => fit.method === method && fit.resolution === resolution);
  return (
    <section className="grid gap-2" aria-label="Cards of 8 to 80 GB">
      <h3 className="text-xs font-medium">Cards of 8 to 80 GB</h3>
      <div className="flex flex-wrap gap-2">
        <ToggleGroup label="Method" options={METHODS} value={method} onChange={setMethod} />
        <ToggleGroup label="Resolution" options={RESOLUTIONS} value={resolution} onChange={setResolution} />
      </div>
      <table className="w-full text-2xs text-secondary-foreground">
        <thead>
          <tr className="text-left">
            <th className="py-0.5 pr-2 font-medium" scope="col">
              Card
            </th>
            <th className="py-0.5 font-medium" scope="col">
              Settings
            </th>
            <th className="py-0.5 pl-2 text-right font-medium" scope="col">
              Time
            </th>
          </tr>
        </thead>
        <tbody>
          {shown.map((fit) => (
            <CardRow key={fit.gib} fit={fit} />
          ))}
        </tbody>
      </table>
      <p className="text-2xs text-muted-foreground">
        One image at a time, encodings cached on disk; with assumed speeds.
      </p>
    </section>
  );
}
