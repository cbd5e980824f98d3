"use client";
import type { ReactNode } from "react";
import { cx } from "./class-names";

/** One of several, as a card. The browser's own radio button lies over it: arrow keys, Space, and focus are its. */
export function RadioCard({
  group,
  isChosen,
  onChoose,
  children,
}: {
  /** The same for all cards of which one is chosen. */
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
