"use client";
import { type KeyboardEvent, type ReactNode, useRef } from "react";
import { cx } from "./class-names";

export interface Tab<Name extends string> {
  name: Name;
  label: ReactNode;
}

/** A row of tabs. Arrow keys move between them. */
export function Tabs<Name extends string>({
  label,
  tabs,
  chosen,
  onChoose,
  className,
}: {
  label: string;
  tabs: Tab<Name>[];
  chosen: Name;
  onChoose: (name: Name) => void;
  className?: string;
}) {
  const list = useRef<HTMLDivElement>(null);
  const onKey = (event: KeyboardEvent) => {
    const moves: Record<string, number> = { ArrowRight: 1, ArrowLeft: -1 };
    const move = moves[event.key];
    if (!move) return;
    const index = tabs.findIndex((tab) => tab.name === chosen);
    const next = tabs[(index + move + tabs.length) % tabs.length];
    if (!next) return;
    event.preventDefault();
    onChoose(next.name);
    list.current?.querySelector<HTMLElement>(`[data-tab="${next.name}"]`)?.focus();
  };
  return (
    <div
      ref={list}
      role="tablist"
      aria-label={label}
      onKeyDown={onKey}
      className={cx("flex gap-1 overflow-x-auto", className)}
    >
      {tabs.map((tab) => (
        <button
          key={tab.name}
          type="button"
          role="tab"
          data-tab={tab.name}
          id={`tab-${tab.name}`}
          aria-selected={tab.name === chosen}
          aria-controls={tab.name === chosen ? `panel-${tab.name}` : undefined}
          tabIndex={tab.name === chosen ? 0 : -1}
          onClick={() => onChoose(tab.name)}
          className={cx(
            "h-9 shrink-0 border-b-2 px-3 text-sm font-medium whitespace-nowrap",
            tab.name === chosen
              ? "border-primary text-foreground"
              : "border-transparent text-secondary-foreground hover:text-foreground",
          )}
        >
          {tab.label}
        </button>
      ))}
    </div>
  );
}

export function TabPanel({ name, children }: { name: string; children: ReactNode }) {
  return (
    <div role="tabpanel" id={`panel-${name}`} aria-labelledby={`tab-${name}`}>
      {children}
    </div>
  );
}

/** A row of buttons to choose one value. */
export function ToggleGroup<Value extends string | number>({
  label,
  options,
  value,
  onChange,
}: {
  label: string;
  options: { value: Value; label: ReactNode }[];
  value: Value;
  onChange: (value: Value) => void;
}) {
  return (
    <div role="group" aria-label={label} className="inline-flex rounded border bg-muted p-0.5">
      {options.map((option) => (
        <button
          key={option.value}
          type="button"
          aria-pressed={option.value === value}
          onClick={() => onChange(option.value)}
          className={cx(
            "h-6 min-w-6 rounded-[3px] px-2 text-xs font-medium",
            option.value === value
              ? "bg-card text-primary shadow-[0_0_0_1px_var(--input)]"
              : "text-secondary-foreground hover:text-foreground",
          )}
        >
          {option.label}
        </button>
      ))}
    </div>
  );
}
