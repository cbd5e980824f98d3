import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const PATIENCE_MS = 180_000;

export async function until<T>(
  what: () => Promise<T | undefined | false> | T | undefined | false,
): Promise<T> {
  const end = Date.now() + PATIENCE_MS;
  while (Date.now() < end) {
    const found = await what();
    if (found) return found;
    await new Promise((done) => setTimeout(done, 150));
  }
  throw new Error(`not within ${PATIENCE_MS / 1000} s: ${what}`);
}

/** A real studio in its own process, which can be killed and restarted on its port. */
export class Studio {
  readonly home = mkdtempSync(join(tmpdir(), "flowloom-e2e-"));
  url = "";
  private process: ChildProcess | null = null;
  private port = 0;
  private readonly flags: string[];

  constructor(...flags: string[]) {
    this.flags = flags;
  }

  async start(): Promise<this> {
    const note = join(this.home, ".flowloom", "server.json");
    rmSync(note, { force: true });
    mkdirSync(this.home, { recursive: true });
    const log = openSync(join(this.home, "server.log"), "a");
    const python = process.env.FLOWLOOM_PYTHON ?? "python3";
    const args = [
      "-m",
      "flowloom.cli.main",
      "up",
      "--home",
      this.home,
      "--port",
      String(this.port),
      ...this.flags,
    ];
    this.process = spawn(python, args, {
      cwd: this.home,
      stdio: ["ignore", log, log],
      env: {
        ...process.env,
        OMP_NUM_THREADS: "1",
        PYTHONPATH: resolve(import.meta.dirname, "..", "..", "src"),
        FLOWLOOM_TOKEN: "",
      },
    });
    this.url = await until(() => {
      if (this.process?.exitCode !== null) throw new Error(this.log());
      return existsSync(note) && (JSON.parse(readFileSync(note, "utf8")) as { url: string }).url;
    });
    this.port = Number(new URL(this.url).port);
    await until(() =>
      fetch(`${this.url}/api/health`).then(
        (answer) => answer.ok,
        () => false,
      ),
    );
    return this;
  }

  log(): string {
    return readFileSync(join(this.home, "server.log"), "utf8");
  }

  async end(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const gone = this.process;
    this.process = null;
    if (!gone || gone.exitCode !== null) return;
    await new Promise((done) => {
      gone.once("exit", done);
      gone.kill(signal);
    });
  }

  /** Kill it and its runs. */
  async clear(): Promise<void> {
    await this.end("SIGKILL");
    const runs = join(this.home, "runs");
    for (const name of existsSync(runs) ? readdirSync(runs) : []) {
      const record = join(runs, name, "studio", "process.json");
      if (!existsSync(record) || existsSync(join(runs, name, "studio", "exit.json"))) continue;
      const { pid, supervisor_pid } = JSON.parse(readFileSync(record, "utf8")) as {
        pid: number;
        supervisor_pid: number;
      };
      for (const each of [supervisor_pid, pid]) {
        try {
          if (each) process.kill(each, "SIGKILL");
        } catch {
          // It has ended already.
        }
      }
    }
    rmSync(this.home, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }

  async get<T>(path: string): Promise<T> {
    const answer = await fetch(this.url + path);
    if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
    return (await answer.json()) as T;
  }

  async post<T>(path: string, body: unknown): Promise<T> {
    const headers = { "content-type": "application/json" };
    const answer = await fetch(this.url + path, { method: "POST", headers, body: JSON.stringify(body) });
    if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
    return (await answer.json()) as T;
  }

  /** Stop all runs, so that a failed test leaves none to the next one. */
  async quiet(): Promise<void> {
    const busy = async (state: string) =>
      (await this.get<{ runs: { id: string }[] }>(`/api/runs?state=${state}`)).runs.map((run) => run.id);
    for (const id of await busy("queued")) await this.post(`/api/runs/${id}/cancel`, {});
    for (const id of await busy("running")) await this.post(`/api/runs/${id}/kill`, {});
    await until(async () => (await busy("running")).length + (await busy("stopping")).length === 0);
  }

  /** Train a small real run to its end; later tests use its images and models. */
  async trained(name: string, steps = 3): Promise<Record<string, Record<string, unknown>>> {
    const config = {
      limits: { max_steps: steps, max_minutes: null },
      inference: { inference_every: 1, steps: 2 },
      training: { save_every: 2 },
    };
    await this.post("/api/tasks/demo/start", { name, config });
    await until(async () => {
      const { state, error } = await this.get<{ state: string; error: unknown }>(`/api/runs/${name}`);
      if (state === "failed" || state === "interrupted") throw new Error(JSON.stringify(error));
      return state === "finished";
    });
    return (await this.get<{ config: Record<string, Record<string, unknown>> }>(`/api/runs/${name}/config`))
      .config;
  }
}
