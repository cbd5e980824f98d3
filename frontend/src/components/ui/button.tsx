import Link from "next/link";
import type { ButtonHTMLAttributes, ReactNode } from "react";
import { cx } from "./classes";

type Kind = "primary" | "plain" | "quiet" | "danger";

const KINDS: Record<Kind, string> = {
  primary: "bg-indigo text-on-indigo border-transparent hover:bg-indigo-strong",
  plain: "bg-panel text-ink border-line-strong/50 hover:border-line-strong hover:bg-sunken",
  quiet: "bg-transparent text-ink-soft border-transparent hover:bg-sunken hover:text-ink",
  danger: "bg-panel text-madder border-line-strong/50 hover:border-madder hover:bg-madder-soft",
};
const SIZES = { small: "h-7 px-2 text-xs gap-1.5", normal: "h-8 px-3 text-sm gap-2" };
const SHAPE =
  "inline-flex items-center justify-center rounded border font-medium whitespace-nowrap transition-colors " +
  "disabled:opacity-50 disabled:pointer-events-none select-none";

interface Look {
  kind?: Kind;
  size?: keyof typeof SIZES;
  className?: string;
  children?: ReactNode;
}

export function Button({
  kind = "plain",
  size = "normal",
  className,
  isBusy = false,
  children,
  ...rest
}: Look & { isBusy?: boolean } & ButtonHTMLAttributes<HTMLButtonElement>) {
  return (
    <button
      type="button"
      {...rest}
      disabled={rest.disabled || isBusy}
      aria-busy={isBusy || undefined}
      className={cx(SHAPE, KINDS[kind], SIZES[size], isBusy && "animate-[breathe_1.2s_infinite]", className)}
    >
      {children}
    </button>
  );
}

export function LinkButton({
  kind = "plain",
  size = "normal",
  className,
  children,
  href,
}: Look & { href: string }) {
  return (
    <Link href={href} className={cx(SHAPE, KINDS[kind], SIZES[size], className)}>
      {children}
    </Link>
  );
}

export function IconButton({
  label,
  className,
  children,
  ...rest
}: { label: string } & ButtonHTMLAttributes<HTMLButtonElement>) {
  return (
    <button
      type="button"
      aria-label={label}
      title={label}
      {...rest}
      className={cx(
        "inline-grid size-7 place-items-center rounded text-ink-soft hover:bg-sunken hover:text-ink",
        "disabled:opacity-40 disabled:pointer-events-none",
        className,
      )}
    >
      {children}
    </button>
  );
}
