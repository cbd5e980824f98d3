"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Button } from "@/components/ui/button";
import { Confirm } from "@/components/ui/dialog";
import { ErrorAlert } from "@/components/ui/error-alert";
import { Input } from "@/components/ui/inputs";
import { Panel, Skeleton } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { api, unwrap } from "@/lib/api/client";
import { secrets } from "@/lib/api/queries";
import type { paths } from "@/lib/api/schema";

type Name = paths["/api/secrets/{name}"]["put"]["parameters"]["path"]["name"];
type Testable = paths["/api/secrets/{name}/test"]["post"]["parameters"]["path"]["name"];

const PURPOSES: Record<Name, string> = {
  HF_TOKEN: "Hugging Face: downloads of gated models, uploads of checkpoints",
  WANDB_API_KEY: "Weights & Biases",
  AWS_ACCESS_KEY_ID: "S3: access key",
  AWS_SECRET_ACCESS_KEY: "S3: secret key",
  AWS_SESSION_TOKEN: "S3: session token, if the key has one",
};
const isTestable = (name: Name): name is Testable => name === "HF_TOKEN" || name === "WANDB_API_KEY";

function SecretRow({ name, isSet }: { name: Name; isSet: boolean }) {
  const [value, setValue] = useState("");
  const [isConfirming, setConfirming] = useState(false);
  const client = useQueryClient();
  const { notify, notifyError } = useToasts();
  const done = (text: string) => {
    setValue("");
    notify(text);
    void client.invalidateQueries({ queryKey: ["secrets"] });
  };
  const at = { params: { path: { name } } };
  const put = useMutation({
    mutationFn: () => unwrap(api.PUT("/api/secrets/{name}", { ...at, body: { value: value.trim() } })),
    onSuccess: () => done(`${name} saved.`),
    onError: notifyError,
  });
  const forget = useMutation({
    mutationFn: () => unwrap(api.DELETE("/api/secrets/{name}", at)),
    onSuccess: () => done(`${name} removed.`),
    onError: notifyError,
  });
  const test = useMutation({
    mutationFn: async (name: Testable) => {
      const { account } = await unwrap(api.POST("/api/secrets/{name}/test", { params: { path: { name } } }));
      if (!account) throw new Error(`The service rejected ${name}. Set a new value.`);
      return account;
    },
    onSuccess: (account) => notify(`${name} works.`, `Account: ${account}`),
    onError: notifyError,
  });
  return (
    <li className="grid items-center gap-x-4 gap-y-2 px-4 py-3 sm:grid-cols-[minmax(0,1fr)_minmax(0,1.200fr)]">
      <div>
        <label htmlFor={`secret-${name}`} className="figure text-sm">
          {name}
        </label>
        <p className="text-xs text-muted-foreground">{PURPOSES[name]}</p>
      </div>
      <form
        className="flex gap-1.5"
        onSubmit={(event) => {
          event.preventDefault();
          put.mutate();
        }}
      >
        <Input
          id={`secret-${name}`}
          type="password"
          autoComplete="off"
          value={value}
          placeholder={isSet ? "set (never shown)" : "not set"}
          onChange={(event) => setValue(event.target.value)}
        />
        <Button type="submit" disabled={!value.trim()} isBusy={put.isPending}>
          Set
        </Button>
        <Button
          disabled={!isSet || !!value.trim() || !isTestable(name)}
          title={isTestable(name) ? undefined : "S3 keys are tested when you create a bucket dataset"}
          isBusy={test.isPending}
          onClick={() => isTestable(name) && test.mutate(name)}
        >
          Test
        </Button>
        <Button kind="danger" disabled={!isSet} isBusy={forget.isPending} onClick={() => setConfirming(true)}>
          {" "}
          Remove{" "}
        </Button>
      </form>
      <Confirm
        title={`Remove ${name}?`}
        isOpen={isConfirming}
        onClose={() => setConfirming(false)}
        onConfirm={() => forget.mutate()}
        confirm="Remove"
      >
        The value cannot be recovered. Runs that need it fail until you set it again.
      </Confirm>
    </li>
  );
}

/** Tokens of other services. Their values are never shown. */
export function Secrets() {
  const { data, error } = useQuery(secrets);
  return (
    <Panel title="Secrets" flush>
      <p className="border-b px-4 py-2.5 text-sm text-secondary-foreground">
        Stored in a file that only you can read. Runs receive them as environment variables; they never appear
        in configurations, logs or responses. S3 keys are tested when you create a bucket dataset.
      </p>
      {error && !data ? (
        <div className="p-4">
          <ErrorAlert error={error} />
        </div>
      ) : !data ? (
        <div className="grid gap-3 p-4">
          <Skeleton className="h-10" />
          <Skeleton className="h-10" />
        </div>
      ) : (
        <ul className="divide-y">
          {data.map((secret) => (
            <SecretRow key={secret.name} name={secret.name as Name} isSet={secret.is_set} />
          ))}
        </ul>
      )}
    </Panel>
  );
}
