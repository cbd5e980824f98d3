"use client";
import { useEffect, useState } from "react";
import { Button } from "@/components/ui/button";
import { Input, Select, Switch, TextArea } from "@/components/ui/inputs";
import { type Field, numberFrom, textOf } from "@/lib/form-fields";
import { isTree, type Json, same } from "@/lib/json";
import { CheckpointPicker } from "./checkpoint-picker";
import { useForm } from "./form-context";
import { PathBrowser } from "./path-browser";

export interface WidgetProps {
  field: Field;
  id: string;
  describedBy: string;
  isInvalid: boolean;
  value: Json | undefined;
  onChange: (value: Json | undefined) => void;
}

const aria = ({ id, describedBy, isInvalid }: WidgetProps) => ({
  id,
  "aria-describedby": describedBy,
  "aria-invalid": isInvalid || undefined,
});

/** The text of an input that is parsed into a value: typing is never reformatted. */
function useTyped(
  value: Json | undefined,
  show: (value: Json | undefined) => string,
  read: (text: string) => Json,
) {
  const [text, setText] = useState(() => show(value));
  // biome-ignore lint/correctness/useExhaustiveDependencies: only an outside change replaces the typed text
  useEffect(() => {
    if (!same(read(text), value ?? null)) setText(show(value));
  }, [JSON.stringify(value ?? null)]);
  return [text, setText] as const;
}

function NumberInput(props: WidgetProps) {
  const { field, value, onChange } = props;
  const [text, setText] = useTyped(value, textOf, numberFrom);
  return (
    <Input
      {...aria(props)}
      inputMode="decimal"
      autoComplete="off"
      className="figure"
      value={text}
      placeholder={field.isNullable ? "none" : ""}
      onChange={(event) => {
        setText(event.target.value);
        onChange(numberFrom(event.target.value));
      }}
    />
  );
}

function TextInput(props: WidgetProps) {
  const { field, value, onChange } = props;
  const listId = `${props.id}-options`;
  const read = (text: string): Json =>
    field.options.length > 0 ? numberFrom(text) : text === "" && field.isNullable ? null : text;
  return (
    <>
      <Input
        {...aria(props)}
        autoComplete="off"
        spellCheck={false}
        value={textOf(value)}
        placeholder={field.isNullable ? "none" : ""}
        list={field.options.length > 0 ? listId : undefined}
        onChange={(event) => onChange(read(event.target.value))}
      />
      {field.options.length > 0 && (
        <datalist id={listId}>
          {field.options.map((option) => (
            <option key={String(option)} value={String(option)} />
          ))}
        </datalist>
      )}
    </>
  );
}

function PathInput(props: WidgetProps) {
  const { field, value, onChange } = props;
  const [isBrowsing, setBrowsing] = useState(false);
  const candidates = useForm().candidates[field.path.join(".")] ?? [];
  const listId = `${props.id}-candidates`;
  return (
    <div className="flex gap-1.5">
      <Input
        {...aria(props)}
        autoComplete="off"
        spellCheck={false}
        value={textOf(value)}
        placeholder={candidates.length > 0 ? `${candidates.length} found` : field.isNullable ? "none" : ""}
        list={candidates.length > 0 ? listId : undefined}
        onChange={(event) =>
          onChange(event.target.value === "" && field.isNullable ? null : event.target.value)
        }
      />
      {candidates.length > 0 && (
        <datalist id={listId}>
          {candidates.map((path) => (
            <option key={path} value={path} />
          ))}
        </datalist>
      )}
      <Button size="normal" aria-label={`Browse for ${field.title}`} onClick={() => setBrowsing(true)}>
        Browse
      </Button>
      {isBrowsing && (
        <PathBrowser
          title={field.title}
          suggestions={candidates}
          onClose={() => setBrowsing(false)}
          onChoose={(path) => {
            setBrowsing(false);
            onChange(path);
          }}
        />
      )}
    </div>
  );
}

function ChoiceInput(props: WidgetProps) {
  const { field, value, onChange } = props;
  const none = "\u2013";
  return (
    <Select
      {...aria(props)}
      value={value == null ? none : JSON.stringify(value)}
      onChange={(event) =>
        onChange(event.target.value === none ? null : (JSON.parse(event.target.value) as Json))
      }
    >
      {(field.isNullable || value == null) && <option value={none}>none</option>}
      {field.options.map((option) => (
        <option key={JSON.stringify(option)} value={JSON.stringify(option)}>
          {String(option)}
        </option>
      ))}
    </Select>
  );
}

const linesOf = (value: Json | undefined) =>
  Array.isArray(value) ? value.map(String).join("\n") : textOf(value);
const readLines = (text: string): Json => (text === "" ? [] : text.split("\n"));

function LinesInput(props: WidgetProps) {
  const { value, onChange } = props;
  const lines = Array.isArray(value) ? value.length : 1;
  return (
    <TextArea
      {...aria(props)}
      rows={Math.min(8, Math.max(2, lines + 1))}
      value={linesOf(value)}
      placeholder="one per line"
      onChange={(event) => onChange(readLines(event.target.value))}
      onBlur={(event) => onChange(readLines(event.target.value.replace(/\n+$/, "")))}
    />
  );
}

/** Paths of models, one per line, typed or selected in a dialog. */
function SourcesInput(props: WidgetProps) {
  const paths = Array.isArray(props.value) ? props.value.map(String) : [];
  return (
    <div className="grid gap-1.5">
      <LinesInput {...props} />
      <CheckpointPicker value={paths} onChange={props.onChange} />
    </div>
  );
}

const numbersOf = (value: Json | undefined) =>
  Array.isArray(value) ? value.map(textOf).join(", ") : textOf(value);
const readNumbers = (text: string): Json =>
  text
    .split(/[\s,;x×]+/)
    .filter(Boolean)
    .map(numberFrom);

function NumbersInput(props: WidgetProps) {
  const [text, setText] = useTyped(props.value, numbersOf, readNumbers);
  return (
    <Input
      {...aria(props)}
      className="figure"
      inputMode="decimal"
      value={text}
      placeholder={props.field.isNullable ? "none" : ""}
      onChange={(event) => {
        setText(event.target.value);
        const read = readNumbers(event.target.value);
        props.onChange(props.field.isNullable && Array.isArray(read) && read.length === 0 ? null : read);
      }}
    />
  );
}

function SwitchInput(props: WidgetProps) {
  return (
    <div className="flex h-8 items-center">
      <Switch
        id={props.id}
        aria-describedby={props.describedBy}
        checked={props.value === true}
        onChange={props.onChange}
      />
    </div>
  );
}

function JsonInput(props: WidgetProps) {
  const [text, setText] = useTyped(
    props.value,
    (value) => JSON.stringify(value ?? null),
    (typed) => {
      try {
        return JSON.parse(typed) as Json;
      } catch {
        return typed;
      }
    },
  );
  return (
    <TextArea
      {...aria(props)}
      rows={isTree(props.value) ? 4 : 2}
      className="figure"
      value={text}
      onChange={(event) => {
        setText(event.target.value);
        try {
          props.onChange(JSON.parse(event.target.value) as Json);
        } catch {
          props.onChange(event.target.value);
        }
      }}
    />
  );
}

const WIDGETS: Partial<Record<Field["kind"], (props: WidgetProps) => React.ReactNode>> = {
  number: NumberInput,
  integer: NumberInput,
  text: TextInput,
  path: PathInput,
  choice: ChoiceInput,
  lines: LinesInput,
  numbers: NumbersInput,
  switch: SwitchInput,
};

/** The control for a field's kind. */
export function FieldInput(props: WidgetProps) {
  // A field with suggested files is a path.
  const hasFiles = (useForm().candidates[props.field.path.join(".")] ?? []).length > 0;
  const named = props.field.name === "source_paths" ? SourcesInput : undefined;
  const Fitting = hasFiles ? PathInput : (named ?? WIDGETS[props.field.kind] ?? JsonInput);
  return <Fitting {...props} />;
}
