"use client";
import { Button, IconButton } from "@/components/ui/button";
import { HelpText } from "@/components/ui/help-text";
import { TrashIcon } from "@/components/ui/icons";
import { Select, Switch } from "@/components/ui/inputs";
import type { Field } from "@/lib/form-fields";
import { isTree, type Json } from "@/lib/json";
import { FieldRow } from "./field-row";
import { useForm, useValue } from "./form-context";

interface Filter {
  isShown: (field: Field) => boolean;
}

/** A field whose `kind` decides its subfields. */
function Variants({ field, path, isShown }: { field: Field; path: string[] } & Filter) {
  const { set } = useForm();
  const { value } = useValue(path, field.initial);
  const kinds = Object.keys(field.variants);
  const kind = isTree(value) && typeof value.kind === "string" ? value.kind : (kinds[0] ?? "");
  const id = `field-${path.join(".")}.kind`;
  return (
    <>
      <div className="grid gap-x-5 gap-y-1 border-l-2 border-l-transparent py-2.5 pr-4 pl-3.5 sm:grid-cols-[minmax(9rem,13rem)_minmax(0,1fr)]">
        <label htmlFor={id} className="pt-1.5 text-sm font-medium">
          {field.path.length > 1 ? field.title : "Kind"}
        </label>
        <div>
          {/* As wide as the fields below, which reserve space for the reset button. */}
          <Select
            className="w-[calc(100%-2.125rem)]!"
            id={id}
            value={kind}
            onChange={(event) => set(path, { kind: event.target.value })}
          >
            {kinds.map((each) => (
              <option key={each}>{each}</option>
            ))}
          </Select>
          <p className="mt-1 max-w-[75ch] text-xs text-muted-foreground">
            <HelpText text={field.help} />
          </p>
        </div>
      </div>
      {(field.variants[kind] ?? []).filter(isShown).map((each) => (
        <AnyField key={each.name} field={each} path={[...path, each.name]} isShown={isShown} />
      ))}
    </>
  );
}

/** `Subsets` as `subset`; capitals within a word stay, as in LoRA. */
const nounOf = (title: string) => {
  const noun = title.replace(/s$/, "");
  return /[A-Z]/.test(noun.slice(1)) ? noun : noun.toLowerCase();
};

/** A list of items with fields. */
function Items({ field, path, isShown }: { field: Field; path: string[] } & Filter) {
  const { set, problems } = useForm();
  const { value } = useValue(path, field.initial);
  const items = Array.isArray(value) ? value : [];
  const kinds = Object.keys(field.variants);
  const add = (item: Json) => set(path, [...items, item]);
  return (
    <div className="grid gap-3 p-4">
      <p className="max-w-[75ch] text-xs text-muted-foreground">
        <HelpText text={field.help} />
      </p>
      {problems.get(path.join("."))?.map(({ text }) => (
        <p key={text} role="alert" className="text-xs font-medium text-warning">
          {text}
        </p>
      ))}
      {items.map((item, index) => {
        const kind = isTree(item) && typeof item.kind === "string" ? item.kind : null;
        const fields = kind ? (field.variants[kind] ?? []) : field.fields;
        return (
          <fieldset key={index} className="rounded border">
            <legend className="ml-3 px-1 text-xs font-medium text-secondary-foreground">
              {kind ?? `${field.title} ${index + 1}`}
            </legend>
            <div className="flex justify-end pr-2">
              <IconButton
                label={`Remove ${kind ?? `${field.title} ${index + 1}`}`}
                onClick={() =>
                  set(
                    path,
                    items.filter((_, i) => i !== index),
                  )
                }
              >
                <TrashIcon className="size-3.5" />
              </IconButton>
            </div>
            {fields.map((each) => (
              <AnyField
                key={each.name}
                field={each}
                path={[...path, String(index), each.name]}
                isShown={isShown}
              />
            ))}
          </fieldset>
        );
      })}
      <div className="flex flex-wrap gap-2">
        {kinds.length > 0 ? (
          kinds.map((kind) => (
            <Button key={kind} size="small" onClick={() => add({ kind })}>
              Add {kind}
            </Button>
          ))
        ) : (
          <Button size="small" onClick={() => add({})}>
            Add {nounOf(field.title)}{" "}
          </Button>
        )}
      </div>
    </div>
  );
}

/** An optional group. */
function Optional({ field, path, isShown }: { field: Field; path: string[] } & Filter) {
  const { set } = useForm();
  const { value } = useValue(path, field.initial);
  const isOn = value != null;
  return (
    <>
      <div className="flex items-center gap-3 px-4 py-2.5">
        <Switch
          aria-label={`Use ${field.title}`}
          checked={isOn}
          onChange={(on) => set(path, on ? {} : null)}
        />
        <span className="text-sm text-secondary-foreground">
          {isOn ? "On" : `Off: the configuration has no “${field.title}” section.`}
        </span>
      </div>
      {isOn &&
        field.fields
          .filter(isShown)
          .map((each) => (
            <AnyField key={each.name} field={each} path={[...path, each.name]} isShown={isShown} />
          ))}
    </>
  );
}

function AnyField({ field, path, isShown }: { field: Field; path: string[] } & Filter) {
  if (field.kind === "variants") return <Variants field={field} path={path} isShown={isShown} />;
  if (field.kind === "items") return <Items field={field} path={path} isShown={isShown} />;
  if (field.kind === "group" && field.isNullable)
    return <Optional field={field} path={path} isShown={isShown} />;
  if (field.kind === "group") {
    return field.fields
      .filter(isShown)
      .map((each) => <AnyField key={each.name} field={each} path={[...path, each.name]} isShown={isShown} />);
  }
  return <FieldRow field={field} path={path} />;
}

/** One section of the configuration. */
export function FormSection({ section, isShown }: { section: Field } & Filter) {
  // A section of a flat schema's fields has no path.
  const isLoose = section.path.length === 0;
  return (
    <section id={`section-${section.name}`} className="scroll-mt-16 rounded-lg border bg-card">
      <header className="border-b px-4 py-2">
        <h2 className="text-sm font-semibold">{section.title}</h2>
        {section.help && section.kind === "group" && (
          <p className="text-xs text-muted-foreground">
            <HelpText text={section.help} />
          </p>
        )}
      </header>
      <div className="py-1">
        {isLoose ? (
          section.fields
            .filter(isShown)
            .map((each) => <AnyField key={each.name} field={each} path={each.path} isShown={isShown} />)
        ) : (
          <AnyField field={section} path={section.path} isShown={isShown} />
        )}
      </div>
    </section>
  );
}
