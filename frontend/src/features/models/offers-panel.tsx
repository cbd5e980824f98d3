"use client";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Button } from "@/components/ui/button";
import { CheckIcon, DownloadIcon, PlusIcon } from "@/components/ui/icons";
import { Panel, Skeleton } from "@/components/ui/panel";
import { useToasts } from "@/components/ui/toasts";
import { download, type Offer, offers } from "@/lib/api/models";
import { bytes } from "@/lib/format";

/** Offers by family, in the order of their first one. */
export function byFamily(all: readonly Offer[]): [string, Offer[]][] {
  const found = new Map<string, Offer[]>();
  for (const offer of all) found.set(offer.family, [...(found.get(offer.family) ?? []), offer]);
  return [...found];
}

function Row({ offer, isBusy, onGet }: { offer: Offer; isBusy: boolean; onGet: () => void }) {
  return (
    <li className="flex items-start justify-between gap-3 px-4 py-2.5">
      <div className="min-w-0">
        <p className="text-sm font-medium">{offer.title}</p>
        <p className="text-xs text-secondary-foreground">{offer.note}</p>
        <p className="figure text-2xs text-muted-foreground">
          {bytes(offer.size)} · {offer.license}
        </p>
      </div>
      {offer.is_here ? (
        <span className="flex items-center gap-1 text-xs font-medium text-success">
          <CheckIcon className="size-3.5" /> installed{" "}
        </span>
      ) : (
        <Button size="small" isBusy={isBusy} onClick={onGet} aria-label={`Download ${offer.title}`}>
          <DownloadIcon className="size-3.5" /> Download{" "}
        </Button>
      )}
    </li>
  );
}

/** Models to download, by family; the first family is open. */
export function OffersPanel({ onCustom }: { onCustom: () => void }) {
  const { data } = useQuery({ ...offers, retry: false });
  const client = useQueryClient();
  const { notify, notifyError } = useToasts();
  const get = useMutation({
    mutationFn: (offer: Offer) => download(offer.download),
    onSuccess: (run) => {
      notify(`${run.id} is queued.`, "The download continues even if the studio restarts.");
      void client.invalidateQueries({ queryKey: ["runs"] });
    },
    onError: notifyError,
  });
  return (
    <Panel
      title="Models to download"
      flush
      actions={
        <Button size="small" onClick={onCustom}>
          <PlusIcon className="size-3.5" /> Download other model{" "}
        </Button>
      }
    >
      {!data ? (
        <div className="p-4">
          <Skeleton className="h-32" />
        </div>
      ) : (
        <div className="divide-y">
          {byFamily(data).map(([family, those], i) => (
            <details key={family} open={i === 0}>
              <summary className="cursor-pointer px-4 py-2 text-sm font-semibold hover:bg-muted">
                {family} <span className="text-xs font-normal text-muted-foreground">{those.length}</span>
              </summary>
              <ul className="divide-y border-t">
                {those.map((offer) => (
                  <Row
                    key={offer.id}
                    offer={offer}
                    isBusy={get.isPending && get.variables?.id === offer.id}
                    onGet={() => get.mutate(offer)}
                  />
                ))}
              </ul>
            </details>
          ))}
        </div>
      )}
    </Panel>
  );
}
