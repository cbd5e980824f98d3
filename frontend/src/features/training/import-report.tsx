"use client";
import type { ReactNode } from "react";
import { Button } from "@/components/ui/button";
import type { Report } from "@/lib/import-files";
import { shown } from "@/lib/json";

/** The number of keys that match fields of the form. */
function MatchedKeys({ report }: { report: Report }) {
  const rest = [report.leftOver, report.translated].map((keys) => Object.keys(keys).length);
  const all = rest.reduce(
    (sum, count) => sum + count,
    report.numMatched + report.others.length + report.unused.length,
  );
  if (report.isPart) {
    return (
      <p>
        Found {report.kind}: <strong>{report.numMatched}</strong> dataset{report.numMatched === 1 ? "" : "s"}.
        The rest of the form does not change.
      </p>
    );
  }
  return (
    <p>
      Found {report.kind}. <strong>{report.numMatched}</strong> of {all} keys match fields of this form
      {all === 0 && "; the file is empty"}.
    </p>
  );
}

function Notice({ children }: { children: ReactNode }) {
  return <p className="rounded border border-warning bg-warning-subtle px-3 py-2">{children}</p>;
}

function Values({ title, label, values }: { title: string; label: string; values: [string, string][] }) {
  if (values.length === 0) return null;
  return (
    <div>
      <p className="font-medium">{title}</p>
      <dl
        tabIndex={0}
        aria-label={label}
        className="figure mt-1 grid max-h-40 grid-cols-[auto_minmax(0,1fr)] gap-x-3 gap-y-0.5 overflow-y-auto rounded border p-2 text-xs"
      >
        {values.map(([key, value]) => (
          <div key={key} className="contents">
            <dt className="text-secondary-foreground">{key}</dt>
            <dd className="[overflow-wrap:anywhere]">{value}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}

/** Keys without a matching field, translated keys and added defaults. */
function OtherKeys({ report }: { report: Report }) {
  const left = Object.entries(report.leftOver).map(([key, value]): [string, string] => {
    const reason = report.reasons[key];
    return [key, reason ? `${shown(value)}: ${reason}` : shown(value)];
  });
  const defaults = Object.entries(report.defaults).map(([key, value]): [string, string] => [
    key,
    shown(value),
  ]);
  return (
    <>
      <Values title="Not imported:" label="Keys that were not imported" values={left} />
      <Values title="Translated:" label="Translated keys" values={Object.entries(report.translated)} />
      <Values
        title="Not in the file, set to the sd-scripts defaults:"
        label="sd-scripts defaults"
        values={defaults}
      />
      {report.unused.length > 0 && (
        <p className="text-xs text-secondary-foreground">
          No effect in this file: <span className="figure">{report.unused.join(", ")}</span>
        </p>
      )}
    </>
  );
}

/** The result of reading a file, shown before the import. */
export function ImportReport({
  report,
  onTake,
  onClose,
}: {
  report: Report;
  onTake: () => void;
  onClose: () => void;
}) {
  if (report.error) {
    return (
      <p role="alert" className="text-sm">
        <span className="font-semibold text-destructive">The file could not be read.</span> {report.error}
      </p>
    );
  }
  return (
    <div className="grid gap-3 text-sm">
      <MatchedKeys report={report} />
      {report.others.length > 0 && (
        <div>
          <p className="font-medium">Kept unchanged in the JSON (no form field):</p>
          <p className="figure text-xs text-secondary-foreground">{report.others.join(", ")}</p>
        </div>
      )}
      <OtherKeys report={report} />
      {report.absent && (
        <Notice>
          Its images are listed in another file, <code className="figure text-xs">{report.absent}</code>. Drop
          both files together, or drop that one next.
        </Notice>
      )}
      {report.secrets.length > 0 && (
        <Notice>
          Tokens are not imported ({report.secrets.join(", ")}). Set them under Settings, which never shows
          them.
        </Notice>
      )}
      {report.problems.length > 0 && (
        <div>
          <p className="font-medium">Fix these problems before training:</p>
          <ul className="mt-1 grid max-h-56 gap-1 overflow-y-auto text-xs">
            {report.problems.map((problem) => (
              <li key={problem.where + problem.detail}>
                <code className="figure">{problem.where.replace("/config/", "").replaceAll("/", ".")}</code>{" "}
                {problem.detail} {problem.hint}
              </li>
            ))}
          </ul>
        </div>
      )}
      {report.problems.length === 0 && !report.isPart && <p className="text-success">Ready to train.</p>}
      <div className="flex justify-end gap-2">
        <Button onClick={onClose}> Cancel </Button>
        <Button kind="primary" onClick={onTake}>
          {" "}
          Import{" "}
        </Button>
      </div>
    </div>
  );
}
