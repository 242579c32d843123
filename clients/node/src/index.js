export { Client } from "./client.js";
export { Decimal, LocalTime, UUID } from "./codec.js";
export { ExesysError, JobError } from "./errors.js";
export { Handle, Job } from "./handle.js";
