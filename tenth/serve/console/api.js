// The server, as the page sees it: the key in each request, errors in words, streams read line by line.
import { t } from "./i18n.js";
import { apiKey } from "./state.js";

let askForKey = async () => false;

/** `ask` is called where a key is needed; it says whether one was given. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** An answer that is no success, or none: `status` is 0 where the server could not be reached. */
export class ApiError extends Error {
  constructor(status, message, { code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }

  /** What a person is told. */
  get words() {
    if (this.status === 0) return t("error.network");
    if (this.code === "queue_full") return t("error.full");
    if (this.code === "not_ready") return t("error.not_ready");
    if (this.code === "stopping") return t("error.stopping");
    if (this.status === 401) return t("error.key");
    if (this.status === 429) return t("error.limit", { message: this.message });
    return this.message;
  }
}

/**
 * fetch with the key, which is asked for where it is missing unless `ask` is false; ApiError for whatever is no success.
 */
export async function call(path, { body, ask = true, ...options } = {}) {
  const answer = await send(path, body, options);
  if (answer.status !== 401) return checked(answer);
  const error = await errorOf(answer);
  if (!ask || !(await askForKey())) throw error;
  return call(path, { body, ...options });
}

async function send(path, body, options) {
  const headers = { accept: "application/json, text/event-stream" };
  if (apiKey() !== null) headers.authorization = `Bearer ${apiKey()}`;
  const posted = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    return await fetch(path, { ...posted, ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, error.message);
  }
}

async function checked(answer) {
  if (answer.ok) return answer;
  throw await errorOf(answer);
}

async function errorOf(answer) {
  const wait = Number.parseInt(answer.headers.get("retry-after") ?? "", 10);
  const retryAfter = Number.isFinite(wait) ? wait : null;
  const found = (await answer.json().catch(() => null))?.error;
  return new ApiError(answer.status, found?.message ?? t("error.status", { status: answer.status }), {
    code: found?.code ?? null,
    retryAfter,
  });
}

export const getJson = async (path, options) => (await call(path, options)).json();

/** The data of each server-sent event, as text; comments keep the connection alive and are passed over. */
export async function* events(answer) {
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let parts = []; // of a line that is not whole: joined once, so that a long line costs its length once
  try {
    while (true) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError(0, error.message);
      });
      if (done) return;
      const lines = decoder.decode(value, { stream: true }).split("\n");
      parts.push(lines[0]);
      if (lines.length === 1) continue;
      lines[0] = parts.join("");
      parts = [lines.pop()];
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
