"use client";
import { useId } from "react";
import { Button } from "@/components/ui/button";
import { Input } from "@/components/ui/inputs";
import { fitName, nameProblem } from "@/lib/run-name";

/** The name of a new run, validated while typing. */
export function RunNameField({
  label,
  value,
  onChange,
  isRefused,
}: {
  label: string;
  value: string;
  onChange: (name: string) => void;
  /** The studio refused the name, e.g. because the run exists. */
  isRefused?: boolean;
}) {
  const id = useId();
  const problem = nameProblem(value);
  const fit = fitName(value);
  return (
    <div className="grid gap-1 text-sm">
      <label htmlFor={id} className="font-medium">
        {label}
      </label>
      <Input
        id={id}
        value={value}
        onChange={(event) => onChange(event.target.value)}
        placeholder="auto-generated if empty"
        autoComplete="off"
        spellCheck={false}
        aria-invalid={problem !== null || isRefused || undefined}
        aria-describedby={problem ? `${id}-problem` : undefined}
      />
      {problem && (
        <p id={`${id}-problem`} role="alert" className="text-xs text-destructive">
          {problem}
        </p>
      )}
      {problem && fit && (
        <div>
          <Button size="small" onClick={() => onChange(fit)}>
            Use {fit}
          </Button>
        </div>
      )}
    </div>
  );
}
