"use client";
import { useEffect, useRef, useState } from "react";
import { Button } from "@/components/ui/button";
import { Empty, Panel } from "@/components/ui/surface";
import { useToasts } from "@/components/ui/toasts";
import { Trouble } from "@/components/ui/trouble";
import { api, got } from "@/lib/api/client";
import { copyText } from "@/lib/copy";
import { followLog } from "@/lib/follow";
import { bytes } from "@/lib/format";

const MOST_CHARS = 400_000;

const ask = (id: string, offset: number) =>
  got(
    api.GET("/api/runs/{run_id}/log", {
      params: { path: { run_id: id }, query: { offset, limit: 262_144 } },
    }),
  );

function useLog(id: string, isActive: boolean) {
  const [text, setText] = useState<string | null>(null);
  const [size, setSize] = useState(0);
  const [error, setError] = useState<unknown>(null);
  const follower = useRef<ReturnType<typeof followLog> | null>(null);
  useEffect(() => {
    follower.current = followLog((offset) => ask(id, offset), {
      onPart: (part, isFirst) => {
        setSize(part.size);
        setError(null);
        setText((old) => (isFirst ? part.text : `${old ?? ""}${part.text}`).slice(-MOST_CHARS));
      },
      onError: setError,
    });
    return () => follower.current?.end();
  }, [id]);
  useEffect(() => follower.current?.grow(isActive), [isActive]);
  return { text, size, error };
}

export function Log({ id, isActive }: { id: string; isActive: boolean }) {
  const { text, size, error } = useLog(id, isActive);
  const { say, complain } = useToasts();
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
          <Button
            size="small"
            kind="quiet"
            onClick={() => copyText(text ?? "").then(() => say("Copied."), complain)}
          >
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
