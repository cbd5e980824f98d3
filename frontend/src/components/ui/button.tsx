import Link from "next/link";
import type { ButtonHTMLAttributes, ReactNode } from "react";
import { cx } from "./class-names";

type Kind = "primary" | "plain" | "quiet" | "danger";

const KINDS: Record<Kind, string> = {
  primary: "bg-primary text-primary-foreground border-transparent hover:bg-primary-hover",
  plain: "bg-card text-foreground border-input/50 hover:border-input hover:bg-muted",
  quiet: "bg-transparent text-secondary-foreground border-transparent hover:bg-muted hover:text-foreground",
  danger: "bg-card text-destructive border-input/50 hover:border-destructive hover:bg-destructive-subtle",
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
        "inline-grid size-7 place-items-center rounded text-secondary-foreground hover:bg-muted hover:text-foreground",
        "disabled:opacity-40 disabled:pointer-events-none",
        className,
      )}
    >
      {children}
    </button>
  );
}
