"use client";
import type { ReactNode } from "react";
import { cx } from "./class-names";

/** A radio button that looks like a card. The native input covers it and handles arrow keys, Space and focus. */
export function RadioCard({
  group,
  isChosen,
  onChoose,
  children,
}: {
  /** The name of the radio group. */
  group: string;
  isChosen: boolean;
  onChoose: () => void;
  children: ReactNode;
}) {
  return (
    <label
      data-chosen={isChosen || undefined}
      className={cx(
        "relative grid min-w-0 content-start gap-1 rounded-lg border bg-card p-3 text-left",
        isChosen ? "border-primary ring-1 ring-primary" : "border-input/50 hover:border-input",
      )}
    >
      <input
        type="radio"
        name={group}
        checked={isChosen}
        onChange={onChoose}
        className="absolute inset-0 size-full cursor-pointer appearance-none rounded-lg"
      />
      {children}
    </label>
  );
}
