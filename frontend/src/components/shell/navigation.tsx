"use client";
import Link from "next/link";
import { usePathname } from "next/navigation";
import type { ComponentType } from "react";
import { cx } from "@/components/ui/class-names";
import {
  BrushIcon,
  DataIcon,
  HomeIcon,
  KohyaIcon,
  ModelIcon,
  RunsIcon,
  SettingsIcon,
  TrainIcon,
} from "@/components/ui/icons";

interface NavLink {
  href: string;
  label: string;
  Icon: ComponentType<{ className?: string }>;
}

const GROUPS: { title: string | null; links: NavLink[] }[] = [
  {
    title: null,
    links: [
      { href: "/", label: "Home", Icon: HomeIcon },
      { href: "/runs/", label: "Runs", Icon: RunsIcon },
    ],
  },
  {
    title: "Train",
    links: [
      { href: "/flow-training/", label: "FLOW training", Icon: TrainIcon },
      { href: "/kohya-training/", label: "Kohya training", Icon: KohyaIcon },
    ],
  },
  {
    title: "Library",
    links: [
      { href: "/datasets/", label: "Datasets", Icon: DataIcon },
      { href: "/models/", label: "Models", Icon: ModelIcon },
      { href: "/playground/", label: "Playground", Icon: BrushIcon },
    ],
  },
  { title: null, links: [{ href: "/settings/", label: "Settings", Icon: SettingsIcon }] },
];

export function Navigation({ onGo }: { onGo?: () => void }) {
  const path = usePathname();
  return (
    <nav aria-label="Main" className="grid gap-4">
      {GROUPS.map(({ title, links }, index) => (
        <div key={index} className="grid gap-px">
          {title && <p className="label px-2 pb-1">{title}</p>}
          {links.map(({ href, label, Icon }) => {
            const isHere = href === "/" ? path === "/" : path.startsWith(href.slice(0, -1));
            return (
              <Link
                key={href}
                href={href}
                onClick={onGo}
                aria-current={isHere ? "page" : undefined}
                className={cx(
                  "flex h-8 items-center gap-2.5 rounded px-2 text-sm font-medium",
                  isHere
                    ? "bg-accent text-primary"
                    : "text-secondary-foreground hover:bg-muted hover:text-foreground",
                )}
              >
                <Icon />
                {label}
              </Link>
            );
          })}
        </div>
      ))}
    </nav>
  );
}
