"use client";
import { Problem } from "@/lib/api/client";
import { Button } from "./button";
import { WarnIcon } from "./icons";

/** An error of the API: what is wrong, where, what to do. */
export function ErrorAlert({ error, onRetry }: { error: unknown; onRetry?: () => void }) {
  const problem = error instanceof Problem ? error : null;
  const title = problem?.title ?? (error instanceof Error ? error.message : String(error));
  return (
    <div
      role="alert"
      className="flex gap-3 rounded-lg border border-destructive bg-destructive-subtle px-4 py-3 text-sm"
    >
      <WarnIcon className="mt-0.5 size-4 text-destructive" />
      <div className="min-w-0 flex-1">
        <p className="font-semibold">{title}</p>
        {problem?.detail && <p className="mt-0.5 [overflow-wrap:anywhere]">{problem.detail}</p>}
        {problem?.hint && <p className="mt-0.5 text-secondary-foreground">{problem.hint}</p>}
        {problem && problem.fieldProblems.length > 0 && (
          <ul className="mt-2 grid gap-1">
            {problem.fieldProblems.map((field) => (
              <li key={field.where + field.detail}>
                <code className="figure text-xs">{field.where}</code> {field.detail} {field.hint}
              </li>
            ))}
          </ul>
        )}
      </div>
      {onRetry && (
        <Button size="small" onClick={onRetry}>
          Try again
        </Button>
      )}
    </div>
  );
}
