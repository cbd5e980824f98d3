"use client";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Dialog } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { ChevronIcon, DataIcon, ModelIcon } from "@/components/ui/icons";
import { Empty, Skeleton } from "@/components/ui/panel";
import { api, unwrap } from "@/lib/api/client";
import { roots } from "@/lib/api/queries";
import { bytes } from "@/lib/format";

interface Location {
  root: string;
  path: string;
}

function Listing({
  location,
  onGo,
  onChoose,
}: {
  location: Location;
  onGo: (path: string) => void;
  onChoose: (path: string) => void;
}) {
  const { data, error } = useQuery({
    queryKey: ["roots", location.root, location.path, 5000],
    queryFn: () =>
      unwrap(
        api.GET("/api/roots/{root}/list", {
          params: { path: { root: location.root }, query: { path: location.path, limit: 5000 } },
        }),
      ),
  });
  if (error) return <ErrorAlert error={error} />;
  if (!data) return <Skeleton className="h-48" />;
  if (data.total === 0) return <Empty title="This folder is empty" />;
  return (
    <ul className="h-80 divide-y overflow-y-auto rounded border">
      {data.entries.map((entry) => (
        <li key={entry.path}>
          <button
            type="button"
            onClick={() =>
              entry.is_folder
                ? onGo([location.path, entry.name].filter(Boolean).join("/"))
                : onChoose(entry.path)
            }
            className="flex h-8 w-full items-center gap-2 px-3 text-left text-sm hover:bg-muted"
          >
            {entry.is_folder ? (
              <ChevronIcon className="size-3.5 text-primary" />
            ) : (
              <DataIcon className="size-3.5 text-muted-foreground" />
            )}
            <span className="min-w-0 flex-1 truncate">{entry.name}</span>
            {!entry.is_folder && (
              <span className="figure text-xs text-muted-foreground">{bytes(entry.size)}</span>
            )}
          </button>
        </li>
      ))}
    </ul>
  );
}

/** Choose a file or folder in the studio's folders; suggested files come first. */
export function PathBrowser({
  title,
  suggestions,
  onChoose,
  onClose,
}: {
  title: string;
  suggestions: string[];
  onChoose: (path: string) => void;
  onClose: () => void;
}) {
  const { data, error } = useQuery(roots);
  const [location, setLocation] = useState<Location | null>(null);
  const root = data?.find((folder) => folder.name === location?.root);
  const currentPath = location && root ? [root.path, location.path].filter(Boolean).join("/") : null;
  const goUp = () =>
    setLocation(
      location?.path ? { root: location.root, path: location.path.split("/").slice(0, -1).join("/") } : null,
    );
  return (
    <Dialog title={title} isOpen onClose={onClose} width="max-w-2xl">
      <div className="grid gap-4">
        {error && <ErrorAlert error={error} />}
        {!location && suggestions.length > 0 && (
          <section>
            <h3 className="label mb-1">Suggested files</h3>
            <ul className="divide-y rounded border">
              {suggestions.map((path) => (
                <li key={path}>
                  <button
                    type="button"
                    className="flex w-full items-center gap-2 px-3 py-2 text-left text-sm hover:bg-muted"
                    onClick={() => onChoose(path)}
                  >
                    <ModelIcon className="size-3.5 text-primary" />
                    <span className="min-w-0 [overflow-wrap:anywhere]">{path}</span>
                  </button>
                </li>
              ))}
            </ul>
          </section>
        )}
        {location ? (
          <>
            <div className="flex items-center justify-between gap-2 text-sm">
              <code className="figure min-w-0 text-xs [overflow-wrap:anywhere]">{currentPath}</code>
              <span className="flex gap-1.5">
                <Button size="small" onClick={goUp}>
                  Up
                </Button>
                <Button size="small" kind="primary" onClick={() => currentPath && onChoose(currentPath)}>
                  Choose this folder
                </Button>
              </span>
            </div>
            <Listing
              location={location}
              onGo={(path) => setLocation({ ...location, path })}
              onChoose={onChoose}
            />
          </>
        ) : (
          <section>
            <h3 className="label mb-1">Studio folders</h3>
            <ul className="divide-y rounded border">
              {data?.map((folder) => (
                <li key={folder.name}>
                  <button
                    type="button"
                    disabled={!folder.exists}
                    onClick={() => setLocation({ root: folder.name, path: "" })}
                    className="flex w-full items-center justify-between gap-3 px-3 py-2 text-left text-sm hover:bg-muted disabled:opacity-60"
                  >
                    <span className="font-medium">{folder.name}</span>
                    <code className="figure min-w-0 truncate text-xs text-muted-foreground">
                      {folder.exists ? folder.path : "does not exist yet"}
                    </code>
                  </button>
                </li>
              ))}
            </ul>
            <p className="mt-2 text-xs text-muted-foreground">
              To add a folder, start the studio with <code className="figure">--root NAME=DIR</code>.
            </p>
          </section>
        )}
      </div>
    </Dialog>
  );
}
