"use client";
import { useEffect, useRef, useState } from "react";
import { Button } from "@/components/ui/button";
import { Empty, Panel } from "@/components/ui/surface";
import { Trouble } from "@/components/ui/trouble";
import { api, got, type Schemas } from "@/lib/api/client";
import { bytes } from "@/lib/format";

const FIRST = -65_536;
const MOST_CHARS = 400_000;
const EVERY_MS = 1500;

type Part = Schemas["LogPart"];

const ask = (id: string, offset: number): Promise<Part> =>
  got(
    api.GET("/api/runs/{run_id}/log", {
      params: { path: { run_id: id }, query: { offset, limit: 262_144 } },
    }),
  );

/** Follows the log by bytes: nothing twice, nothing left out. */
function useLog(id: string, isActive: boolean) {
  const [text, setText] = useState<string | null>(null);
  const [size, setSize] = useState(0);
  const [error, setError] = useState<unknown>(null);
  useEffect(() => {
    let offset = FIRST;
    let isOver = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const look = async () => {
      try {
        if (!document.hidden) {
          const part = await ask(id, offset);
          if (isOver) return;
          const isFresh = offset < 0;
          offset = part.next_offset;
          setSize(part.size);
          setError(null);
          setText((old) => (isFresh ? part.text : `${old ?? ""}${part.text}`).slice(-MOST_CHARS));
        }
      } catch (problem) {
        setError(problem);
      }
      if (!isOver && isActive) timer = setTimeout(look, EVERY_MS);
    };
    void look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [id, isActive]);
  return { text, size, error };
}

export function Log({ id, isActive }: { id: string; isActive: boolean }) {
  const { text, size, error } = useLog(id, isActive);
  const [isFollowing, setFollowing] = useState(true);
  const box = useRef<HTMLPreElement>(null);
  // biome-ignore lint/correctness/useExhaustiveDependencies: it scrolls when there is more text
  useEffect(() => {
    if (isFollowing && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text, isFollowing]);
  return (
    <Panel
      title="Log"
      flush
      actions={
        <>
          <span className="text-xs text-ink-faint">{size ? bytes(size) : ""}</span>
          <Button size="small" kind="quiet" onClick={() => void navigator.clipboard.writeText(text ?? "")}>
            Copy
          </Button>
          <Button
            size="small"
            kind="quiet"
            aria-pressed={isFollowing}
            onClick={() => setFollowing(!isFollowing)}
          >
            {isFollowing ? "Following" : "Follow"}
          </Button>
        </>
      }
    >
      {error !== null && text === null ? (
        <div className="p-4">
          <Trouble error={error} />
        </div>
      ) : text === "" ? (
        <Empty title="The log is empty">
          Only tracebacks and other text of the process go here; what it does is above.
        </Empty>
      ) : (
        <pre
          ref={box}
          tabIndex={0}
          role="log"
          aria-label={`Log of ${id}`}
          onWheel={(event) => event.deltaY < 0 && setFollowing(false)}
          className="figure h-[28rem] overflow-auto rounded-b-lg bg-sunken p-4 text-xs leading-5 whitespace-pre-wrap [overflow-wrap:anywhere]"
        >
          {text}
        </pre>
      )}
    </Panel>
  );
}
