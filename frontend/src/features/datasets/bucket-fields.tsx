"use client";
import { useMutation } from "@tanstack/react-query";
import Link from "next/link";
import { useEffect } from "react";
import { Button } from "@/components/ui/button";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Checkbox, Input } from "@/components/ui/inputs";
import { api, unwrap } from "@/lib/api/client";
import type { Storage, StoreVerdict } from "@/lib/api/datasets";

/** The result of the connection test. */
function Verdict({ verdict }: { verdict: StoreVerdict }) {
  if (verdict.ok) {
    return (
      <p className="text-xs text-success">
        Connected. {verdict.first ? `First object: ${verdict.first}` : "The bucket is empty."}
      </p>
    );
  }
  return (
    <p className="text-xs [overflow-wrap:anywhere]">
      <span className="font-medium text-destructive">{verdict.detail}</span> {verdict.hint}
    </p>
  );
}

/** Connection settings of a bucket, with a test. */
export function BucketFields({
  url,
  storage,
  onChange,
}: {
  url: string;
  storage: Storage;
  onChange: (storage: Storage) => void;
}) {
  const test = useMutation({
    mutationFn: () => unwrap(api.POST("/api/stores/test", { body: { url, storage } })),
  });
  const { reset } = test;
  // biome-ignore lint/correctness/useExhaustiveDependencies: a result belongs to its address
  useEffect(() => reset(), [url, storage]);
  const text = (key: "endpoint" | "region", label: string, placeholder: string) => (
    <label className="grid gap-1 text-sm font-medium">
      {label}
      <Input
        value={storage[key] ?? ""}
        placeholder={placeholder}
        autoComplete="off"
        spellCheck={false}
        onChange={(event) => onChange({ ...storage, [key]: event.target.value.trim() || undefined })}
      />
    </label>
  );
  return (
    <fieldset className="grid gap-3 rounded border p-3">
      <legend className="label px-1">Bucket connection</legend>
      <div className="grid gap-3 sm:grid-cols-2">
        {text("endpoint", "Endpoint", "Amazon S3 if empty")}
        {text("region", "Region", "us-east-1")}
      </div>
      <label className="flex items-center gap-2 text-sm">
        <Checkbox
          checked={storage.anonymous ?? false}
          onChange={(event) => onChange({ ...storage, anonymous: event.target.checked || undefined })}
        />
        Public bucket (send no keys)
      </label>
      <div className="flex flex-wrap items-center justify-between gap-2">
        <p className="min-w-0 flex-1 text-xs text-muted-foreground">
          Keys are stored under{" "}
          <Link href="/settings/" className="underline">
            Settings
          </Link>
          and never shown.
        </p>
        <Button size="small" isBusy={test.isPending} onClick={() => test.mutate()}>
          {" "}
          Test connection{" "}
        </Button>
      </div>
      <div role="status">
        {test.error && <ErrorAlert error={test.error} />}
        {test.data && <Verdict verdict={test.data} />}
      </div>
    </fieldset>
  );
}
