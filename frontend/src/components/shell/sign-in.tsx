"use client";
import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useCallback, useEffect, useRef, useState } from "react";
import { Button } from "@/components/ui/button";
import { Logo } from "@/components/ui/icons";
import { Input } from "@/components/ui/inputs";
import { api, Problem, SIGNED_OUT, unwrap } from "@/lib/api/client";

const IN_ADDRESS = "#token=";

/** URL-decoded text, or the text itself if its percent signs are not valid escapes. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Ask for the token when a request is refused; an address with `#token=` signs in automatically. */
export function SignIn() {
  const [isAsked, setAsked] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const [token, setToken] = useState("");
  const dialog = useRef<HTMLDialogElement>(null);
  const client = useQueryClient();

  const signIn = useCallback(
    async (word: string) => {
      setBusy(true);
      try {
        await unwrap(api.POST("/api/session", { body: { token: word } }));
        setAsked(false);
        setError(null);
        await client.resetQueries();
      } catch (problem) {
        const isWrong = problem instanceof Problem && problem.status === 401;
        setError(isWrong ? "Wrong token." : String(problem));
        setAsked(true);
      }
      setBusy(false);
    },
    [client],
  );

  useEffect(() => {
    const { hash } = window.location;
    if (hash.startsWith(IN_ADDRESS)) {
      history.replaceState(null, "", window.location.pathname + window.location.search);
      void signIn(decoded(hash.slice(IN_ADDRESS.length)));
    }
    const onSignedOut = () => setAsked(true);
    window.addEventListener(SIGNED_OUT, onSignedOut);
    return () => window.removeEventListener(SIGNED_OUT, onSignedOut);
  }, [signIn]);

  useEffect(() => {
    if (isAsked && !dialog.current?.open) dialog.current?.showModal();
    if (!isAsked && dialog.current?.open) dialog.current.close();
  }, [isAsked]);

  const onSubmit = (event: FormEvent) => {
    event.preventDefault();
    void signIn(token.trim());
  };
  return (
    <dialog
      ref={dialog}
      aria-labelledby="sign-in-title"
      onCancel={(event) => event.preventDefault()}
      className="w-[min(26rem,calc(100vw-2rem))] rounded-xl border bg-card p-6 shadow-float"
    >
      <form onSubmit={onSubmit} className="grid gap-4">
        <Logo className="size-8 text-primary" />
        <div>
          <h2 id="sign-in-title" className="text-lg font-semibold">
            Sign in to this studio
          </h2>
          <p className="mt-1 text-sm text-secondary-foreground">
            The studio printed a link with the token when it started. The token is also in{" "}
            <code className="figure text-xs">.flowloom/token</code> in the studio's home folder.
          </p>
        </div>
        <label className="grid gap-1 text-sm font-medium">
          Token
          <Input
            type="password"
            autoComplete="current-password"
            value={token}
            onChange={(event) => setToken(event.target.value)}
            aria-invalid={error !== null}
            aria-describedby={error ? "sign-in-error" : undefined}
          />
        </label>
        {error && (
          <p id="sign-in-error" role="alert" className="text-sm text-destructive">
            {error}
          </p>
        )}
        <Button type="submit" kind="primary" isBusy={isBusy} disabled={!token.trim()}>
          Sign in
        </Button>
      </form>
    </dialog>
  );
}
