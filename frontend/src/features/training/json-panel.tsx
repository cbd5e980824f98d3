"use client";
import { useEffect, useState } from "react";
import { Button } from "@/components/ui/button";
import { TextArea } from "@/components/ui/inputs";
import { Panel } from "@/components/ui/panel";
import { ToggleGroup } from "@/components/ui/tabs";
import { useToasts } from "@/components/ui/toasts";
import { DiffTable } from "@/features/run/config-panel";
import { copyText } from "@/lib/clipboard";
import { isTree, same, type Tree } from "@/lib/json";

interface Props {
  config: Tree;
  whole: Tree;
  base: Tree;
  onChange: (config: Tree) => void;
  fileName: string;
}

function save(name: string, text: string) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The configuration as JSON, to edit, compare and export. */
export function JsonPanel({ config, whole, base, onChange, fileName }: Props) {
  const [view, setView] = useState<"edit" | "diff" | "all">("edit");
  const [text, setText] = useState(() => JSON.stringify(config, null, 2));
  const [error, setError] = useState<string | null>(null);
  const { notify, notifyError } = useToasts();
  // biome-ignore lint/correctness/useExhaustiveDependencies: only an outside change replaces the typed text
  useEffect(() => {
    try {
      if (same(JSON.parse(text), config)) return;
    } catch {
      // The text is not valid JSON: replace it.
    }
    setText(JSON.stringify(config, null, 2));
    setError(null);
  }, [config]);
  const type = (next: string) => {
    setText(next);
    try {
      const read: unknown = JSON.parse(next);
      if (!isTree(read)) throw new Error("The configuration must be a JSON object.");
      setError(null);
      onChange(read);
    } catch (problem) {
      setError(problem instanceof Error ? problem.message : String(problem));
    }
  };
  return (
    <Panel
      flush
      title="JSON"
      actions={
        <ToggleGroup
          label="View"
          value={view}
          onChange={setView}
          options={[
            { value: "edit", label: "Edit" },
            { value: "diff", label: "Diff" },
            { value: "all", label: "Full" },
          ]}
        />
      }
    >
      {view === "edit" && (
        <div className="p-3">
          <TextArea
            aria-label="Configuration as JSON: changes from the defaults"
            aria-invalid={error !== null}
            spellCheck={false}
            rows={16}
            className="figure resize-y text-xs leading-5"
            value={text}
            onChange={(event) => type(event.target.value)}
          />
          <p className="mt-1 min-h-5 text-xs text-muted-foreground" role="status">
            {error ? (
              <span className="text-destructive">{error}</span>
            ) : (
              "Shows only values that differ from the defaults."
            )}
          </p>
        </div>
      )}
      {view === "diff" && (
        <div className="max-h-[26rem] overflow-auto">
          <DiffTable from={base} to={whole} names={["Preset", "Current"]} />
        </div>
      )}
      {view === "all" && (
        <pre tabIndex={0} className="figure max-h-[26rem] overflow-auto p-3 text-xs leading-5">
          {JSON.stringify(whole, null, 2)}
        </pre>
      )}
      <div className="flex flex-wrap gap-1.5 border-t p-2.5">
        <Button size="small" onClick={() => save(fileName, JSON.stringify(config, null, 2))}>
          Export
        </Button>
        <Button size="small" onClick={() => save(fileName, JSON.stringify(whole, null, 2))}>
          Export full
        </Button>
        <Button
          size="small"
          kind="quiet"
          onClick={() => copyText(JSON.stringify(config, null, 2)).then(() => notify("Copied."), notifyError)}
        >
          Copy
        </Button>
      </div>
    </Panel>
  );
}
