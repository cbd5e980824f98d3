"use client";
import { useMutation } from "@tanstack/react-query";
import {
  type KeyboardEvent,
  type ReactNode,
  useDeferredValue,
  useEffect,
  useMemo,
  useRef,
  useState,
} from "react";
import { Button, IconButton } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { ErrorAlert } from "@/components/ui/error-alert";
import { DownIcon, UpIcon } from "@/components/ui/icons";
import { SearchInput } from "@/components/ui/inputs";
import { Empty, Panel } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { api, unwrap } from "@/lib/api/client";
import { copyText } from "@/lib/clipboard";
import { bytes, count } from "@/lib/format";
import { findAll, segments, wrapIndex } from "@/lib/highlight";
import { tailLog } from "@/lib/log-tail";

const MAX_CHARS = 400_000;
/** The most that a page can hold; a longer log has to be downloaded. */
const MAX_WHOLE_BYTES = 8 * 2 ** 20;
const PART_BYTES = 2 ** 18;
const LARGE_PART_BYTES = 4 * 2 ** 20;

const readLog = (id: string, offset: number, limit: number) =>
  unwrap(
    api.GET("/api/runs/{run_id}/log", {
      params: { path: { run_id: id }, query: { offset, limit } },
    }),
  );

/** Follow the log; `isWhole`: from its start. */
function useLog(id: string, isActive: boolean, isWhole: boolean) {
  const maxChars = isWhole ? MAX_WHOLE_BYTES : MAX_CHARS;
  const [text, setText] = useState<string | null>(null);
  const [start, setStart] = useState(0);
  const [size, setSize] = useState(0);
  const [error, setError] = useState<unknown>(null);
  const tail = useRef<ReturnType<typeof tailLog> | null>(null);
  useEffect(() => {
    tail.current = tailLog(
      (offset) => readLog(id, offset, isWhole ? LARGE_PART_BYTES : PART_BYTES),
      {
        onPart: (part, isFirst) => {
          if (isFirst) setStart(part.offset);
          setSize(part.size);
          setError(null);
          setText((old) => (isFirst ? part.text : `${old ?? ""}${part.text}`).slice(-maxChars));
        },
        onError: setError,
      },
      isWhole ? -MAX_WHOLE_BYTES : undefined,
    );
    return () => tail.current?.end();
  }, [id, isWhole, maxChars]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: a new tail needs the state, too
  useEffect(() => tail.current?.grow(isActive), [isActive, id, isWhole]);
  return { text, start, size, error };
}

/** Download the complete log as a file. */
async function download(id: string): Promise<void> {
  const parts: string[] = [];
  for (let offset = 0; ; ) {
    const part = await readLog(id, offset, LARGE_PART_BYTES);
    parts.push(part.text);
    if (part.next_offset >= part.size || part.next_offset <= offset) break;
    offset = part.next_offset;
  }
  const url = URL.createObjectURL(new Blob(parts, { type: "text/plain" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${id}.log`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** The search in the text: query, matches and the current match. */
function useSearch(text: string) {
  const [query, setQuery] = useState("");
  const [now, setNow] = useState(0);
  const deferredQuery = useDeferredValue(query);
  const hits = useMemo(() => findAll(text, deferredQuery), [text, deferredQuery]);
  const current = Math.min(now, Math.max(0, hits.length - 1));
  const shown = useMemo(() => segments(text, hits, current), [text, hits, current]);
  return {
    query,
    hits,
    current,
    shown,
    move: (by: number) => setNow(wrapIndex(current, by, hits.length)),
    type: (next: string) => {
      setQuery(next);
      setNow(0);
    },
  };
}

function Search({ search, children }: { search: ReturnType<typeof useSearch>; children: ReactNode }) {
  const { query, hits, current, move, type } = search;
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Enter") move(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") type("");
  };
  return (
    <div className="flex flex-wrap items-center gap-x-2 gap-y-1 border-b px-3 py-1.5" role="search">
      <SearchInput
        isSmall
        className="min-w-40 flex-1 sm:max-w-72"
        label="Search the log"
        value={query}
        onSearch={type}
        onKeyDown={onKeyDown}
      />
      <IconButton label="Previous match" disabled={hits.length === 0} onClick={() => move(-1)}>
        <UpIcon className="size-3.5" />
      </IconButton>
      <IconButton label="Next match" disabled={hits.length === 0} onClick={() => move(1)}>
        <DownIcon className="size-3.5" />
      </IconButton>
      <span role="status" className="figure min-w-16 text-xs text-secondary-foreground">
        {query && (hits.length === 0 ? "no matches" : `${count(current + 1)} of ${count(hits.length)}`)}
      </span>
      <span className="ml-auto flex items-center gap-2 text-xs text-secondary-foreground">{children}</span>
    </div>
  );
}

/** Copy, download and follow. */
function LogActions({
  id,
  text,
  size,
  isFollowing,
  onFollow,
}: {
  id: string;
  text: string;
  size: number;
  isFollowing: boolean;
  onFollow: (isFollowing: boolean) => void;
}) {
  const { notify, notifyError } = useToasts();
  const save = useMutation({ mutationFn: () => download(id), onError: notifyError });
  return (
    <>
      <span className="text-xs text-muted-foreground">{size ? bytes(size) : ""}</span>
      <Button
        size="small"
        kind="quiet"
        onClick={() => copyText(text).then(() => notify("Copied."), notifyError)}
      >
        Copy
      </Button>
      <Button
        size="small"
        kind="quiet"
        disabled={size === 0}
        isBusy={save.isPending}
        onClick={() => save.mutate()}
      >
        Download
      </Button>
      <Button size="small" kind="quiet" aria-pressed={isFollowing} onClick={() => onFollow(!isFollowing)}>
        {isFollowing ? "Following" : "Follow"}
      </Button>
    </>
  );
}

/** The text with its matches marked. It scrolls to new text while following, and to the current match. */
function LogText({
  id,
  text,
  search,
  isFollowing,
  onScrollUp,
}: {
  id: string;
  text: string;
  search: ReturnType<typeof useSearch>;
  isFollowing: boolean;
  onScrollUp: () => void;
}) {
  const box = useRef<HTMLPreElement>(null);
  const isSearching = search.query !== "";
  // biome-ignore lint/correctness/useExhaustiveDependencies: scrolls when text is added
  useEffect(() => {
    if (isFollowing && !isSearching && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text, isFollowing, isSearching]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: scrolls when another match is current
  useEffect(() => {
    const mark = box.current?.querySelector<HTMLElement>("[aria-current]");
    // Not scrollIntoView, which would move the page as well.
    if (mark && box.current) box.current.scrollTop = mark.offsetTop - box.current.clientHeight / 2;
  }, [search.current, search.hits.length, search.query]);
  return (
    <pre
      ref={box}
      tabIndex={0}
      role="log"
      aria-label={`Log of ${id}`}
      onWheel={(event) => event.deltaY < 0 && onScrollUp()}
      className="figure relative h-[28rem] overflow-auto rounded-b-lg bg-muted p-4 text-xs leading-5 whitespace-pre-wrap [overflow-wrap:anywhere]"
    >
      {search.shown.map((piece, index) =>
        piece.hit === null ? (
          piece.text
        ) : (
          <mark
            key={index}
            aria-current={piece.hit === search.current || undefined}
            className={cx(
              "rounded-sm",
              piece.hit === search.current
                ? "bg-primary text-primary-foreground"
                : "bg-warning-subtle text-foreground",
            )}
          >
            {piece.text}
          </mark>
        ),
      )}
    </pre>
  );
}

export function LogPanel({ id, isActive }: { id: string; isActive: boolean }) {
  const [isWhole, setWhole] = useState(false);
  const { text, start, size, error } = useLog(id, isActive, isWhole);
  const search = useSearch(text ?? "");
  const [isFollowing, setFollowing] = useState(true);
  const shownBytes = Math.min(size - start, isWhole ? MAX_WHOLE_BYTES : MAX_CHARS);
  const isCut = shownBytes < size;
  return (
    <Panel
      title="Log"
      flush
      actions={
        <LogActions id={id} text={text ?? ""} size={size} isFollowing={isFollowing} onFollow={setFollowing} />
      }
    >
      {error !== null && text === null ? (
        <div className="p-4">
          <ErrorAlert error={error} />
        </div>
      ) : text === "" ? (
        <Empty title="The log is empty">
          Only tracebacks and other process output appear here. Progress is on the Overview tab.
        </Empty>
      ) : (
        <>
          <Search search={search}>
            {isCut && !isWhole && (
              <>
                Last {bytes(shownBytes)}
                <Button size="small" onClick={() => setWhole(true)}>
                  Load all
                </Button>
              </>
            )}
            {isCut && isWhole && `Last ${bytes(shownBytes)}. Download the log for the rest.`}
          </Search>
          <LogText
            id={id}
            text={text ?? ""}
            search={search}
            isFollowing={isFollowing}
            onScrollUp={() => setFollowing(false)}
          />
        </>
      )}
    </Panel>
  );
}
