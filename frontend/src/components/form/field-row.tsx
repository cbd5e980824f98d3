"use client";
import { IconButton } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { HelpText } from "@/components/ui/help-text";
import { UndoIcon } from "@/components/ui/icons";
import type { Field } from "@/lib/form-fields";
import { type Json, shown } from "@/lib/json";
import { FieldInput } from "./field-input";
import { useForm, useValue } from "./form-context";

/** A field: name, control, help, previous value and problems. */
export function FieldRow({ field, path = field.path }: { field: Field; path?: string[] }) {
  const { set, problems } = useForm();
  const { value, before, isChanged } = useValue(path, field.initial);
  const dotted = path.join(".");
  const id = `field-${dotted}`;
  const wrong = [...problems]
    .filter(([key]) => key === dotted || key.startsWith(`${dotted}.`))
    .flatMap(([, fieldProblems]) => fieldProblems);
  const onChange = (next: Json | undefined) => set(path, next);
  // A missing value is not yet a mistake and is marked in another colour.
  const isOpen = wrong.every(({ code }) => code === "missing");
  const note = [field.unit, field.range].filter(Boolean).join(" · ");
  return (
    <div
      data-field={dotted}
      className={cx(
        "grid gap-x-5 gap-y-1 border-l-2 py-2.5 pr-4 pl-3.5 sm:grid-cols-[minmax(9rem,13rem)_minmax(0,1fr)]",
        wrong.length > 0
          ? isOpen
            ? "border-l-warning"
            : "border-l-destructive"
          : isChanged
            ? "border-l-primary"
            : "border-l-transparent",
      )}
    >
      <div className="min-w-0 pt-1.5">
        <label htmlFor={id} className="block text-sm font-medium">
          {field.title}
          {field.isRequired && <span className="text-destructive"> *</span>}
        </label>
        <code className="figure block truncate text-2xs text-muted-foreground" title={dotted}>
          {path[path.length - 1]}
        </code>
      </div>
      <div className="min-w-0">
        <div className="flex items-start gap-1.5">
          <div className="min-w-0 flex-1">
            <FieldInput
              field={field}
              id={id}
              describedBy={`${id}-help`}
              isInvalid={wrong.length > 0 && !isOpen}
              value={value}
              onChange={onChange}
            />
          </div>
          <IconButton
            label={`Reset to ${shown(before ?? null)}`}
            className={cx("mt-0.5", !isChanged && "invisible")}
            onClick={() => onChange(before ?? null)}
          >
            <UndoIcon className="size-3.5" />
          </IconButton>
        </div>
        <div id={`${id}-help`} className="mt-1 max-w-[75ch] text-xs text-muted-foreground">
          {wrong.map(({ text }) => (
            <p
              key={text}
              role="alert"
              className={cx("font-medium", isOpen ? "text-warning" : "text-destructive")}
            >
              {text}
            </p>
          ))}
          <HelpText text={field.help} />{" "}
          {note && <span className="whitespace-nowrap text-muted-foreground">({note})</span>}
          {isChanged && (
            <span className="text-primary">
              {" "}
              was <code className="figure">{shown(before ?? null)}</code>
            </span>
          )}
        </div>
      </div>
    </div>
  );
}
