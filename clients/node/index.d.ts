/** Something is wrong that a person can mend: `code` is for programs, `fix` says what to do next. */
export class ExesysError extends Error {
  constructor(code: string, message: string, more?: { field?: string; fix?: string });
  code: string;
  field: string;
  fix: string;
}

/** A job ended in error: what the function raised, or what became of it. */
export class JobError extends ExesysError {
  constructor(type: string, message: string, attempts: number, more?: { traceback?: string; job_id?: string });
  type: string;
  attempts: number;
  traceback: string;
  job_id: string;
}

export class UUID {
  constructor(written: string);
  readonly text: string;
  toString(): string;
  toJSON(): string;
}

export class Decimal {
  constructor(written: string | number | bigint);
  readonly text: string;
  toString(): string;
  toJSON(): string;
}

/** A date and time without a zone, as its ISO 8601 text. */
export class LocalTime {
  constructor(written: string);
  readonly text: string;
  toString(): string;
  toJSON(): string;
}

export type State = "start" | "standby" | "processing" | "data_available" | "error";

export interface Waiting {
  /** Milliseconds to wait; then an ExesysError with the code `result_timeout`. The job goes on. */
  timeout_ms?: number;
  /** Ends the wait with its reason. The job goes on. */
  signal?: AbortSignal;
}

/** The options of a command, as over REST. */
export interface CommandOptions {
  queue?: string;
  priority?: number;
  delay_s?: number;
  at?: string | Date;
  timeout_s?: number;
  retries?: number;
  backoff_s?: number;
  key?: string;
  key_limit?: number;
  result_ttl_s?: number;
  notify?: string;
  traceparent?: string;
}

export interface SubmitOptions extends CommandOptions {
  job_id?: string;
  from?: string;
  to?: string | string[];
  /** Wait for the result of the step that goes to `from`. */
  standby?: boolean;
}

export interface Step extends CommandOptions {
  cmd: string;
  data?: unknown;
  job_id?: string;
  from?: string;
  to?: string | string[];
}

export interface Status {
  status: 0 | 1 | 2 | 3 | 4;
  state: State;
  result?: { EOJ: any };
  error?: { type: string; message: string; attempts: number };
}

export interface ConnectOptions extends Waiting {
  /** The bus, such as `ipc:///srv/exesys/var/run/bus` or `tcp://10.0.0.1:5555`. */
  endpoint?: string;
  /** The path of a key file, for a bus over TCP. */
  key?: string;
  /** The home of a system on this host. */
  home?: string;
}

export class Client {
  private constructor();
  static connect(options?: ConnectOptions): Promise<Client>;
  submit(cmd: string, data?: unknown, options?: SubmitOptions): Handle;
  submitMany(cmd: string, data: Iterable<unknown>, options?: SubmitOptions): Handle[];
  run(cmd: string, data?: unknown, options?: SubmitOptions & Waiting): Promise<any>;
  workflow(steps: Step[], job_id?: string): Job;
  follow(job_id: string, step?: { from?: string; to?: string | string[] }): Handle;
  status(job_id: string, step?: { from?: string; to?: string | string[] } & Waiting): Promise<Status>;
  cancel(job_id: string): Promise<number>;
  retry(job_id: string): Promise<number>;
  stopRunner(runner: string): Promise<number>;
  stops(type?: string, uuid?: string): AsyncIterableIterator<{ type: string; uuid: string }>;
  snapshot(...parts: string[]): Promise<Record<string, any>>;
  close(options?: { timeout_ms?: number }): Promise<void>;
}

/** A command on its way. */
export class Handle {
  private constructor();
  readonly job_id: string;
  readonly from: string;
  readonly to: string | string[];
  readonly cmd: string;
  /** The state last heard of; null until the router has taken the command. */
  readonly state: State | null;
  readonly done: boolean;
  readonly error: ExesysError | null;
  accepted(options?: Waiting): Promise<State>;
  ended(options?: Waiting): Promise<void>;
  result(options?: Waiting): Promise<any>;
  cancel(): Promise<boolean>;
}

/** A workflow on its way. */
export class Job {
  private constructor();
  readonly job_id: string;
  readonly steps: Handle[];
  readonly done: boolean;
  accepted(options?: Waiting): Promise<void>;
  result(options?: Waiting): Promise<any>;
  cancel(): Promise<boolean>;
}
