"use client";
import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { Button, IconButton } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { CloseIcon } from "@/components/ui/icons";
import { TextArea } from "@/components/ui/inputs";
import { useToasts } from "@/components/ui/toasts";
import { type DatasetImage, keepCaption, saveCaption } from "@/lib/api/datasets";
import { captionSaver, type Saving } from "@/lib/caption-saver";
import { bytes } from "@/lib/format";

/** Save the caption a moment after typing, if its version has not changed meanwhile. Undo is the browser's. */
function useCaption(dataset: string, image: DatasetImage) {
  const client = useQueryClient();
  const { notifyError } = useToasts();
  const [text, setText] = useState(image.caption);
  const [state, setState] = useState<Saving>("saved");
  const [error, setError] = useState<unknown>(null);
  const [saver] = useState(() =>
    captionSaver(
      image,
      async (caption, version) => {
        const saved = await saveCaption(dataset, image.item, caption, version);
        keepCaption(client, dataset, saved);
        return saved;
      },
      (next, problem) => {
        setState(next);
        setError(problem);
      },
    ),
  );
  const { caption, version } = image;
  useEffect(() => {
    if (saver.adopt({ caption, version })) setText(caption);
  }, [saver, caption, version]);
  useEffect(() => {
    // A closed or hidden tab may not come back.
    const save = () => void saver.save().catch(() => {});
    window.addEventListener("pagehide", save);
    return () => {
      window.removeEventListener("pagehide", save);
      // Save when the next image is opened, and report a failure.
      saver.save().catch(notifyError);
    };
  }, [saver, notifyError]);
  const type = (next: string) => {
    setText(next);
    saver.type(next);
  };
  return { text, type, state, error, save: () => void saver.save().catch(() => {}) };
}

const STATE_LABELS: Record<Saving, string> = {
  saved: "Saved",
  typing: "…",
  saving: "Saving …",
  failed: "Not saved",
};

interface Props {
  dataset: string;
  image: DatasetImage;
  position: string;
  onMove: (by: number) => void;
  onClose: () => void;
  onTag: (tag: string) => void;
}

/** An image and its caption. Alt with an arrow key opens the next or previous image. */
export function CaptionEditor({ dataset, image, position, onMove, onClose, onTag }: Props) {
  const { text, type, state, error, save } = useCaption(dataset, image);
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => area.current?.focus({ preventScroll: true }), []);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape") onClose();
      if (!event.altKey || (event.key !== "ArrowRight" && event.key !== "ArrowLeft")) return;
      event.preventDefault();
      onMove(event.key === "ArrowRight" ? 1 : -1);
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [onMove, onClose]);
  const chips = image.is_tags
    ? text
        .split(",")
        .map((tag) => tag.trim())
        .filter(Boolean)
    : [];
  return (
    <section aria-label="Caption" className="grid content-start gap-3 rounded-lg border bg-card p-3">
      <div className="flex items-center justify-between gap-2">
        <p className="min-w-0 truncate text-sm font-medium" title={image.file}>
          {image.item}
        </p>
        <IconButton label="Close" onClick={onClose}>
          <CloseIcon />
        </IconButton>
      </div>
      <img
        src={`${image.url}?size=1024`}
        alt={image.caption || image.item}
        className="h-64 w-full rounded bg-muted object-contain"
      />
      <p className="figure text-xs text-muted-foreground">
        {position} · {image.width && `${image.width} × ${image.height} · `}
        {bytes(image.size)}
      </p>
      {image.problem && <p className="text-sm text-destructive">{image.problem}</p>}
      <label className="grid gap-1 text-sm font-medium">
        <span className="flex items-baseline justify-between">
          Caption
          <span
            role="status"
            className={
              state === "failed" ? "text-xs text-destructive" : "text-xs font-normal text-muted-foreground"
            }
          >
            {STATE_LABELS[state]}
          </span>
        </span>
        <TextArea
          ref={area}
          rows={6}
          value={text}
          onChange={(event) => type(event.target.value)}
          onBlur={save}
        />
      </label>
      {state === "failed" && <ErrorAlert error={error} onRetry={save} />}
      {chips.length > 0 && (
        <ul className="flex flex-wrap gap-1">
          {chips.map((tag, index) => (
            <li key={index} className="flex items-center rounded border bg-muted text-xs">
              <button
                type="button"
                className="px-1.5 py-1 hover:text-primary"
                onClick={() => onTag(tag)}
                title="Show images with this tag"
              >
                {tag}
              </button>
              <IconButton
                label={`Remove ${tag}`}
                className="size-6"
                onClick={() => type(chips.filter((_, i) => i !== index).join(", "))}
              >
                <CloseIcon className="size-3" />
              </IconButton>
            </li>
          ))}
        </ul>
      )}
      <div className="flex justify-between gap-2">
        <Button size="small" onClick={() => onMove(-1)} title="Alt + left arrow">
          Previous
        </Button>
        <Button size="small" onClick={() => onMove(1)} title="Alt + right arrow">
          Next
        </Button>
      </div>
    </section>
  );
}
