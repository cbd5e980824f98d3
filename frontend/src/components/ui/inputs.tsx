"use client";
import type { ComponentProps, InputHTMLAttributes, SelectHTMLAttributes } from "react";
import { cx } from "./class-names";
import { SearchIcon } from "./icons";

const SHAPE =
  "w-full min-w-0 rounded border border-input/70 bg-card pr-2.5 text-sm text-foreground placeholder:text-muted-foreground " +
  "hover:border-input disabled:opacity-60 aria-[invalid=true]:border-destructive";

export function Input({ className, ...rest }: InputHTMLAttributes<HTMLInputElement>) {
  return (
    <input
      {...rest}
      className={cx(
        SHAPE,
        !className?.includes("h-") && "h-8",
        !className?.includes("pl-") && "pl-2.5",
        className,
      )}
    />
  );
}

interface SearchProps extends Pick<InputHTMLAttributes<HTMLInputElement>, "onKeyDown" | "className"> {
  label: string;
  /** The placeholder; by default, the label. */
  hint?: string;
  value: string;
  onSearch: (query: string) => void;
  isSmall?: boolean;
}

/** A search field; `className` applies to the outer element. */
export function SearchInput({ label, hint, value, onSearch, isSmall, className, onKeyDown }: SearchProps) {
  return (
    <label className={cx("relative block", className)}>
      <span className="sr-only">{label}</span>
      <SearchIcon
        className={cx("absolute size-4 text-muted-foreground", isSmall ? "top-1.5 left-2" : "top-2 left-2.5")}
      />
      <Input
        type="search"
        className={isSmall ? "h-7 pl-7 text-xs" : "pl-8"}
        placeholder={hint ?? label}
        value={value}
        onChange={(event) => onSearch(event.target.value)}
        onKeyDown={onKeyDown}
      />
    </label>
  );
}

export function TextArea({ className, ...rest }: ComponentProps<"textarea">) {
  return <textarea {...rest} className={cx(SHAPE, "py-1.5 pl-2.5", className)} />;
}

export function Select({ className, ...rest }: SelectHTMLAttributes<HTMLSelectElement>) {
  return <select {...rest} className={cx(SHAPE, "h-8 pl-2", className)} />;
}

/** A toggle switch. */
export function Switch({
  checked,
  onChange,
  ...rest
}: {
  checked: boolean;
  onChange: (checked: boolean) => void;
  id?: string;
  disabled?: boolean;
  "aria-label"?: string;
  "aria-describedby"?: string;
}) {
  return (
    <button
      {...rest}
      type="button"
      role="switch"
      aria-checked={checked}
      onClick={() => onChange(!checked)}
      className={cx(
        "relative h-5 w-9 shrink-0 rounded-full border transition-colors",
        checked ? "border-primary bg-primary" : "border-input bg-muted",
      )}
    >
      <span
        className={cx(
          "absolute top-[3px] left-[3px] size-3 rounded-full transition-transform",
          checked ? "translate-x-4 bg-primary-foreground" : "bg-muted-foreground",
        )}
      />
    </button>
  );
}

export function Checkbox({ className, ...rest }: InputHTMLAttributes<HTMLInputElement>) {
  return (
    <input
      type="checkbox"
      {...rest}
      className={cx("block size-4 cursor-pointer accent-primary", className)}
    />
  );
}
