/** Something is wrong that a person can mend: `code` is for programs, `fix` says what to do next. */
export class ExesysError extends Error {
  /**
   * @param {string} code such as `unknown_cmd`; docs/protocol.md lists those of the router
   * @param {string} message a sentence
   * @param {{field?: string, fix?: string}} [more] the part of the input at fault, and what to do
   */
  constructor(code, message, { field = "", fix = "" } = {}) {
    super(fix ? `${message} ${fix}` : message);
    this.name = "ExesysError";
    this.code = code;
    this.field = field;
    this.fix = fix;
  }
}

/** A job ended in error: what the function raised, or what became of it. */
export class JobError extends ExesysError {
  /**
   * @param {string} type the name of the exception in Python, or `Timeout`, `Cancelled`, `PredecessorFailed` …
   * @param {string} message its text
   * @param {number} attempts how often the step was begun
   * @param {{traceback?: string, job_id?: string}} [more]
   */
  constructor(type, message, attempts, { traceback = "", job_id = "" } = {}) {
    super("job_failed", message);
    this.name = "JobError";
    this.type = type;
    this.attempts = attempts;
    this.traceback = traceback;
    this.job_id = job_id;
  }
}

/** @param {[string, string, string, string]} problem what the router refused with */
export function refusal([code, message, field, fix]) {
  return new ExesysError(code, message, { field, fix });
}
