"use client";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { cx } from "@/components/ui/class-names";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Panel, Skeleton } from "@/components/ui/panel";
import { TabPanel, Tabs } from "@/components/ui/tabs";
import { useToasts } from "@/components/ui/toasts";
import { useDebounced } from "@/hooks/use-validation";
import { api, unwrap } from "@/lib/api/client";
import { copyText } from "@/lib/clipboard";
import type { Tree } from "@/lib/json";

const COMMAND = "command";

/** The files and command of the run that this configuration would start. */
function useOutcome(trainer: string, config: Tree, name: string, isWanted: boolean) {
  const request = useDebounced({ config, name: name.trim() || null });
  return useQuery({
    queryKey: ["outcome", trainer, request],
    queryFn: () =>
      unwrap(api.POST("/api/{trainer}/config/preview", { params: { path: { trainer } }, body: request })),
    enabled: isWanted,
    placeholderData: (old) => old,
    staleTime: 10_000,
    gcTime: 30_000,
    retry: false,
  });
}

/** A text with a copy button. */
function Text({ name, text, wrap }: { name: string; text: string; wrap: boolean }) {
  const { notify, notifyError } = useToasts();
  return (
    <>
      <pre
        tabIndex={0}
        className={cx(
          "figure max-h-[22rem] min-h-24 overflow-auto p-3 text-xs leading-5",
          wrap && "whitespace-pre-wrap [overflow-wrap:anywhere]",
        )}
      >
        {text || "(empty)"}
      </pre>
      <div className="border-t p-2.5">
        <Button
          size="small"
          onClick={() => copyText(text).then(() => notify(`Copied ${name}.`), notifyError)}
        >
          Copy {name}
        </Button>
      </div>
    </>
  );
}

/** The run's files and command, updated with the form, for running it by hand. */
export function ConfigPreview({
  trainer,
  config,
  name,
  isOpen,
}: {
  trainer: string;
  config: Tree;
  name: string;
  isOpen: boolean;
}) {
  const [isShown, setShown] = useState(isOpen);
  const [chosen, setChosen] = useState<string | null>(null);
  const { data, error } = useOutcome(trainer, config, name, isShown);
  const texts = new Map((data?.files ?? []).map((file) => [file.name, file.text]));
  if (data?.command) texts.set(COMMAND, data.command.line);
  const open = chosen && texts.has(chosen) ? chosen : texts.keys().next().value;
  return (
    <Panel
      flush
      title="Files and command"
      actions={
        <Button size="small" kind="quiet" aria-expanded={isShown} onClick={() => setShown(!isShown)}>
          {isShown ? "Hide" : "Show"}
        </Button>
      }
    >
      {!isShown ? (
        <p className="px-4 py-3 text-xs text-muted-foreground">The run's files and command.</p>
      ) : error ? (
        <div className="p-3">
          <ErrorAlert error={error} />
        </div>
      ) : !data ? (
        <Skeleton className="m-3 h-96" />
      ) : open === undefined ? (
        <p className="px-4 py-3 text-sm text-secondary-foreground">
          Fix the problems listed under Start to see the files.
        </p>
      ) : (
        <>
          <Tabs
            label="Files and command"
            className="flex-wrap border-b px-1.5 [&>button]:px-2"
            tabs={[...texts.keys()].map((each) => ({ name: each, label: each }))}
            chosen={open}
            onChoose={setChosen}
          />
          <TabPanel name={open}>
            <Text name={open} text={texts.get(open) ?? ""} wrap={open === COMMAND} />
          </TabPanel>
          {!data.command && (
            <p className="border-t px-4 py-2.5 text-xs text-muted-foreground">
              The command appears once this trainer is installed; see Settings.
            </p>
          )}
        </>
      )}
    </Panel>
  );
}
