"use client";
import { useMutation, useQuery } from "@tanstack/react-query";
import { Button } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { CheckIcon, WarnIcon } from "@/components/ui/icons";
import { Panel, Skeleton } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { copyText } from "@/lib/clipboard";
import { doctor, type Finding, failedFirst, systemReport } from "@/lib/system-report";

function Findings({ findings }: { findings: Finding[] }) {
  const bad = findings.filter((each) => !each.is_ok).length;
  return (
    <>
      <p
        role="status"
        className={`mt-3 text-sm font-medium ${bad > 0 ? "text-destructive" : "text-success"}`}
      >
        {bad > 0 ? `${bad} of ${findings.length} checks failed` : "No problems found"}
      </p>
      <ul className="mt-2 divide-y rounded border">
        {failedFirst(findings).map((each, index) => (
          <li key={index} className="grid grid-cols-[1rem_minmax(0,1fr)] gap-x-2 px-3 py-1.5 text-xs">
            {each.is_ok ? (
              <CheckIcon className="size-4 text-success" />
            ) : (
              <WarnIcon className="size-4 text-destructive" />
            )}
            <p className="min-w-0 [overflow-wrap:anywhere]">
              <span className="font-semibold">{each.name}</span>{" "}
              {!each.is_ok && <span className="sr-only">problem: </span>}
              <span className={each.is_ok ? "text-secondary-foreground" : ""}>{each.text}</span>
            </p>
          </li>
        ))}
      </ul>
    </>
  );
}

/** Checks of the installation, and a report for bug reports. */
export function Doctor() {
  const { data, error, isFetching, refetch } = useQuery(doctor);
  const { notify, notifyError } = useToasts();
  const copy = useMutation({
    mutationFn: async () => {
      const findings = data ?? (await refetch({ throwOnError: true })).data ?? [];
      const report = await systemReport(findings);
      await copyText(report);
      return report;
    },
    onSuccess: () => notify("Report copied."),
    onError: notifyError,
  });
  return (
    <Panel
      title="Doctor"
      actions={
        <>
          <Button size="small" isBusy={isFetching} onClick={() => void refetch()}>
            {data ? "Run checks again" : "Run checks"}
          </Button>
          <Button size="small" isBusy={copy.isPending} onClick={() => copy.mutate()}>
            Copy report
          </Button>
        </>
      }
    >
      <p className="text-sm text-secondary-foreground">
        Checks Python, torch, devices, packages, other trainers and disk, and says how to fix problems. Takes
        a few seconds. The report has the results, without secrets or paths.
      </p>
      {error && !isFetching && (
        <div className="mt-3">
          <ErrorAlert error={error} />
        </div>
      )}
      {data ? <Findings findings={data} /> : isFetching && <Skeleton className="mt-3 h-64" />}
      {copy.data && (
        <pre
          tabIndex={0}
          className="figure mt-3 max-h-80 overflow-auto rounded bg-muted p-3 text-xs leading-5"
        >
          {copy.data}
        </pre>
      )}
    </Panel>
  );
}
