"use client";
import { Checkbox, Input } from "@/components/ui/inputs";
import type { Schemas } from "@/lib/api/client";
import { clusterOf, type LaunchFields, optionsProblem, toggled } from "@/lib/launch";

interface Props {
  devices: string[];
  clusters: Schemas["Place"][];
  selected: string[];
  launch: LaunchFields;
  onChange: (selected: string[]) => void;
  onLaunch: (launch: LaunchFields) => void;
}

function CountInput({
  label,
  value,
  least,
  onChange,
}: {
  label: string;
  value: number;
  least: number;
  onChange: (value: number) => void;
}) {
  return (
    <label className="grid flex-1 gap-1 text-xs">
      {label}
      <Input
        type="number"
        min={least}
        value={value}
        onChange={(event) => onChange(Math.max(least, Math.round(event.target.valueAsNumber || 0)))}
      />
    </label>
  );
}

/** Number of machines, their GPUs, and options of the cluster. */
function MachineFields({
  cluster,
  launch,
  onLaunch,
}: Pick<Props, "launch" | "onLaunch"> & { cluster: Schemas["Place"] }) {
  const problem = optionsProblem(launch.options, cluster.options);
  return (
    <div className="grid gap-2 rounded border p-2">
      <div className="flex gap-2">
        <CountInput
          label="Machines"
          least={1}
          value={launch.nodes}
          onChange={(nodes) => onLaunch({ ...launch, nodes })}
        />
        <CountInput
          label="GPUs of each"
          least={0}
          value={launch.gpus}
          onChange={(gpus) => onLaunch({ ...launch, gpus })}
        />
      </div>
      {launch.gpus === 0 && (
        <p className="text-xs text-muted-foreground">Without GPUs the run trains on the CPU.</p>
      )}
      <label className="grid gap-1 text-xs">
        Options
        <Input
          value={launch.options}
          placeholder={cluster.options.includes("time") ? "time=12:00:00" : ""}
          aria-invalid={problem !== null}
          onChange={(event) => onLaunch({ ...launch, options: event.target.value })}
        />
        {problem && <span className="text-warning">{problem}</span>}
      </label>
    </div>
  );
}

/** Devices of this machine, and clusters that take runs. */
export function DeviceFields({ devices, clusters, selected, launch, onChange, onLaunch }: Props) {
  const cluster = clusterOf(selected, clusters);
  const choices = [...devices.map((device) => ({ device, title: device })), ...clusters];
  return (
    <fieldset className="grid gap-1">
      <legend className="text-sm font-medium">Devices</legend>
      <div className="flex flex-wrap gap-x-4 gap-y-1">
        {choices.map(({ device, title }) => (
          <label key={device} className="flex h-7 items-center gap-2 text-sm">
            <Checkbox
              checked={selected.includes(device)}
              onChange={() => onChange(toggled(selected, device, clusters))}
            />
            {title}
          </label>
        ))}
      </div>
      {cluster ? (
        <MachineFields cluster={cluster} launch={launch} onLaunch={onLaunch} />
      ) : (
        <p className="text-xs text-muted-foreground">None selected: uses the first free device.</p>
      )}
    </fieldset>
  );
}
