import { cx } from "@/components/ui/class-names";
import type { Schemas } from "@/lib/api/client";
import { bytes, slowDown } from "@/lib/format";

interface Space extends Pick<Schemas["MemoryReport"], "parts" | "total" | "fits"> {
  /** Null: not known. */
  free: number | null;
  not_counted?: string[];
}

/** The parts of a total against the free amount. */
export function Stack({ title, report }: { title: string; report: Space }) {
  const parts = Object.entries(report.parts).filter(([, size]) => size > 0);
  const whole = Math.max(report.total, report.free ?? 0);
  return (
    <div className="grid gap-1.5">
      <div className="flex items-baseline justify-between text-xs">
        <span className="font-medium">{title}</span>
        <span className={cx("figure", report.fits ? "text-secondary-foreground" : "text-destructive")}>
          {bytes(report.total)}
          {report.free != null && ` of ${bytes(report.free)}`}
        </span>
      </div>
      <div
        className="flex h-3 overflow-hidden rounded bg-muted ring-1 ring-border ring-inset"
        aria-hidden="true"
      >
        {parts.map(([name, size], index) => (
          <span
            key={name}
            title={`${name}: ${bytes(size)}`}
            style={{ width: `${(size / whole) * 100}%`, background: `var(--chart-${(index % 8) + 1})` }}
          />
        ))}
      </div>
      <ul className="flex flex-wrap gap-x-3 gap-y-0.5 text-2xs text-secondary-foreground">
        {parts.map(([name, size], index) => (
          <li key={name} className="flex items-center gap-1">
            <span className="size-2 rounded-sm" style={{ background: `var(--chart-${(index % 8) + 1})` }} />
            {name} <span className="figure">{bytes(size)}</span>
          </li>
        ))}
      </ul>
      {report.not_counted && report.not_counted.length > 0 && (
        <details className="text-2xs text-muted-foreground">
          <summary className="cursor-pointer">Rough estimate: not included</summary>
          <ul className="mt-1 grid list-disc gap-0.5 pl-4">
            {report.not_counted.map((each) => (
              <li key={each}>{each}</li>
            ))}
          </ul>
        </details>
      )}
    </div>
  );
}

/** Each measure with what it saves and costs. */
function Measures({ measures }: { measures: Schemas["MeasureReport"][] }) {
  return (
    <table className="w-full text-2xs text-secondary-foreground">
      <thead>
        <tr className="text-left">
          <th className="py-0.5 font-medium" scope="col">
            Measure
          </th>
          <th className="py-0.5 pl-2 text-right font-medium" scope="col">
            Saves
          </th>
          <th className="py-0.5 pl-2 text-right font-medium" scope="col">
            Time
          </th>
        </tr>
      </thead>
      <tbody>
        {measures.map((measure) => (
          <tr key={measure.path} className="border-t align-top">
            <td className="py-1" title={measure.path}>
              {measure.text}
            </td>
            <td className="figure py-1 pl-2 text-right whitespace-nowrap">{bytes(measure.saved)}</td>
            <td className="figure py-1 pl-2 text-right whitespace-nowrap">{slowDown(measure.slow_down)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** How the run is made to fit: measures, and the host memory that they need. */
export function MemoryPlan({ plan }: { plan: Schemas["PlanReport"] }) {
  const fits = plan.host_free == null || plan.host_total <= plan.host_free;
  return (
    <section className="grid gap-2" aria-label="Memory plan">
      <h3 className="flex items-baseline justify-between text-xs font-medium">
        Memory plan
        <span className="figure text-secondary-foreground">{slowDown(plan.slow_down)} time</span>
      </h3>
      {plan.measures.length > 0 ? (
        <Measures measures={plan.measures} />
      ) : (
        <p className="text-2xs text-secondary-foreground">No block recomputes or streams.</p>
      )}
      {Object.keys(plan.host_parts).length > 0 && (
        <Stack
          title="Host memory"
          report={{ parts: plan.host_parts, total: plan.host_total, free: plan.host_free, fits }}
        />
      )}
      {plan.checkpoint_copy > 0 && (
        <p className="text-2xs text-secondary-foreground">
          While a checkpoint is written, its copy takes {bytes(plan.checkpoint_copy)} of host memory.
        </p>
      )}
      {plan.measures.length > 0 && <p className="text-2xs text-muted-foreground">Speeds {plan.speed}.</p>}
    </section>
  );
}
