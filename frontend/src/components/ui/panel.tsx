import type { ReactNode } from "react";
import { cx } from "./class-names";

/** A titled card. */
export function Panel({
  title,
  actions,
  children,
  className,
  flush = false,
}: {
  title?: ReactNode;
  actions?: ReactNode;
  children: ReactNode;
  className?: string;
  flush?: boolean;
}) {
  return (
    <section className={cx("min-w-0 rounded-lg border bg-card", className)}>
      {(title || actions) && (
        <header className="flex min-h-10 flex-wrap items-center justify-between gap-x-3 gap-y-1 border-b px-4 py-1.5">
          <h2 className="text-sm font-semibold">{title}</h2>
          {actions && <div className="flex flex-wrap items-center gap-1.5">{actions}</div>}
        </header>
      )}
      <div className={flush ? "" : "p-4"}>{children}</div>
    </section>
  );
}

export function Page({
  title,
  lead,
  actions,
  children,
  wide = false,
}: {
  title: ReactNode;
  lead?: ReactNode;
  actions?: ReactNode;
  children: ReactNode;
  wide?: boolean;
}) {
  return (
    <main
      id="main"
      tabIndex={-1}
      className={cx(
        "mx-auto w-full px-4 py-5 outline-none sm:px-6",
        wide ? "max-w-[140rem]" : "max-w-6xl min-[1900px]:max-w-[96rem]",
      )}
    >
      <div className="mb-5 flex flex-wrap items-start justify-between gap-x-4 gap-y-3">
        <div className="min-w-0">
          <h1 className="text-xl font-semibold tracking-tight [overflow-wrap:anywhere]">{title}</h1>
          {lead && <p className="mt-0.5 max-w-[70ch] text-sm text-secondary-foreground">{lead}</p>}
        </div>
        {actions && <div className="flex flex-wrap items-center gap-2">{actions}</div>}
      </div>
      {children}
    </main>
  );
}

export function Skeleton({ className }: { className?: string }) {
  return (
    <div className={cx("animate-[breathe_1.6s_infinite] rounded bg-muted", className)} aria-hidden="true" />
  );
}

/** An empty state: a title, a hint and actions. */
export function Empty({
  title,
  children,
  actions,
}: {
  title: string;
  children?: ReactNode;
  actions?: ReactNode;
}) {
  return (
    <div className="grid place-items-center px-6 py-10 text-center">
      <div className="weave mb-4 h-10 w-16 rounded border" aria-hidden="true" />
      <p className="text-sm font-semibold">{title}</p>
      {children && <div className="mt-1 max-w-[52ch] text-sm text-secondary-foreground">{children}</div>}
      {actions && <div className="mt-4 flex flex-wrap justify-center gap-2">{actions}</div>}
    </div>
  );
}

export function Meter({
  value,
  label,
  tone = "primary",
}: {
  value: number;
  label: string;
  tone?: "primary" | "warning" | "destructive" | "success";
}) {
  const share = Math.max(0, Math.min(1, value));
  const tones = {
    primary: "bg-primary",
    warning: "bg-warning",
    destructive: "bg-destructive",
    success: "bg-success",
  };
  return (
    <div
      role="meter"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={Math.round(share * 100)}
      className="h-1.5 w-full overflow-hidden rounded-full bg-muted ring-1 ring-border ring-inset"
    >
      <div
        className={cx("h-full origin-left rounded-full", tones[tone])}
        style={{ width: `${share * 100}%` }}
      />
    </div>
  );
}

/** A labelled value. */
export function Stat({ label, value, note }: { label: string; value: ReactNode; note?: ReactNode }) {
  return (
    <div className="min-w-0">
      <dt className="label truncate">{label}</dt>
      <dd className="figure mt-0.5 truncate text-lg leading-6">{value}</dd>
      {note && <dd className="truncate text-xs text-muted-foreground">{note}</dd>}
    </div>
  );
}
