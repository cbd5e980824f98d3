"use client";
import { useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Select } from "@/components/ui/inputs";
import { Empty, Panel, Skeleton } from "@/components/ui/panel";
import type { Sample } from "@/lib/api/client";
import { samples } from "@/lib/api/queries";
import { count } from "@/lib/format";
import { type Axis, axesOf, cellsOf, keyOf, settingOf } from "@/lib/xy-grid";

const NONE = "";
const SINGLE: Axis = { name: NONE, values: [""] };

/** The value, with a source shortened to run and checkpoint. */
const shortValue = (axis: string, value: string) =>
  axis === "source" ? value.split("/").slice(-2).join("/") : value || "–";

/** The value with its axis name; a prompt needs none. */
const labelled = (axis: string, value: string) =>
  axis === "prompt" ? value : `${axis.replaceAll("_", " ")} ${shortValue(axis, value)}`;

/** An image with the settings that differ within its cell. */
function GridImage({ sample, others }: { sample: Sample; others: Axis[] }) {
  const settings = Object.entries(sample.settings ?? {}).map(([name, value]) => `${name} ${String(value)}`);
  return (
    <a
      href={sample.url}
      target="_blank"
      rel="noreferrer"
      title={[sample.prompt, `seed ${sample.seed}`, ...settings].join("\n")}
    >
      <img
        src={`${sample.url}?size=512`}
        alt={`${sample.prompt ?? "Image"}, seed ${sample.seed}`}
        loading="lazy"
        className="w-full rounded border bg-muted object-contain"
      />
      {others.length > 0 && (
        <span className="block text-2xs text-muted-foreground [overflow-wrap:anywhere]">
          {others.map((axis) => labelled(axis.name, settingOf(sample, axis.name))).join(" · ")}
        </span>
      )}
    </a>
  );
}

function AxisSelect({
  label,
  axes,
  value,
  onChange,
}: {
  label: string;
  axes: Axis[];
  value: string;
  onChange: (name: string) => void;
}) {
  return (
    <label className="flex items-center gap-1.5 text-xs">
      {label}
      <Select
        className="w-auto! h-7 text-xs"
        value={value}
        onChange={(event) => onChange(event.target.value)}
      >
        <option value={NONE}>none</option>
        {axes.map((axis) => (
          <option key={axis.name} value={axis.name}>
            {axis.name.replaceAll("_", " ")} ({axis.values.length})
          </option>
        ))}
      </Select>
    </label>
  );
}

function Table({ x, y, others, images }: { x: Axis; y: Axis; others: Axis[]; images: Sample[] }) {
  const cells = useMemo(() => cellsOf(images, x.name || null, y.name || null), [images, x.name, y.name]);
  return (
    <div className="overflow-auto py-3 pr-3" role="region" aria-label="Images by settings" tabIndex={0}>
      <table className="border-separate border-spacing-1.5">
        {x.name && (
          <thead>
            <tr>
              {y.name && <td />}
              {x.values.map((value) => (
                <th
                  key={value}
                  scope="col"
                  className="figure text-left text-xs font-medium text-secondary-foreground"
                >
                  {labelled(x.name, value)}
                </th>
              ))}
            </tr>
          </thead>
        )}
        <tbody>
          {y.values.map((row) => (
            <tr key={row} className="align-top">
              {y.name && (
                <th
                  scope="row"
                  className="sticky left-0 max-w-40 min-w-20 bg-card pr-2 text-left text-xs font-medium text-secondary-foreground [overflow-wrap:anywhere]"
                >
                  {labelled(y.name, row)}
                </th>
              )}
              {x.values.map((column) => (
                <td key={column} className="max-w-64 min-w-36">
                  <div className="grid gap-1.5">
                    {(cells.get(keyOf(column, row)) ?? []).map((sample) => (
                      <GridImage key={sample.file} sample={sample} others={others} />
                    ))}
                  </div>
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The images in a grid over two of the settings that differ. */
export function XYGrid({ id, isActive }: { id: string; isActive: boolean }) {
  const { data, error, refetch } = useQuery({ ...samples(id), refetchInterval: isActive ? 3000 : false });
  const [choice, setChoice] = useState<{ x?: string; y?: string }>({});
  const axes = useMemo(() => axesOf(data ?? []), [data]);
  const byName = (name: string | undefined) => axes.find((axis) => axis.name === name);
  const last = axes[axes.length - 1];
  const x = choice.x === undefined ? last : byName(choice.x);
  const y = choice.y === undefined ? axes.find((axis) => axis !== x) : byName(choice.y);
  return (
    <Panel
      flush
      title="Images"
      actions={
        <>
          <span className="text-xs text-muted-foreground">{data ? `${count(data.length)} images` : ""}</span>
          {axes.length > 0 && (
            <>
              <AxisSelect
                label="Columns"
                axes={axes}
                value={x?.name ?? NONE}
                onChange={(name) => setChoice({ ...choice, x: name })}
              />
              <AxisSelect
                label="Rows"
                axes={axes}
                value={y?.name ?? NONE}
                onChange={(name) => setChoice({ ...choice, y: name })}
              />
            </>
          )}
        </>
      }
    >
      {error && !data ? (
        <div className="p-4">
          <ErrorAlert error={error} onRetry={() => void refetch()} />
        </div>
      ) : !data ? (
        <Skeleton className="m-4 h-48" />
      ) : data.length === 0 ? (
        <Empty title="No images yet">
          {isActive ? "Images appear here as they are generated." : "This run generated no images."}
        </Empty>
      ) : (
        <Table
          x={x ?? SINGLE}
          y={y ?? SINGLE}
          others={axes.filter((axis) => axis !== x && axis !== y)}
          images={data}
        />
      )}
    </Panel>
  );
}
