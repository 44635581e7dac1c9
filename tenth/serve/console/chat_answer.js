// One answer from the server: how it is asked for, how its chunks add up, how one that was stopped goes on.
import { ApiError, call, events, getJson } from "./api.js";
import { fieldsOf } from "./chat_settings.js";
import { t } from "./i18n.js";

export const emptyAnswer = () => ({
  content: "",
  reasoning: "",
  thinkSeconds: 0,
  finish: null,
  error: null,
  usage: null,
});

/** Ask for an answer to messages. `grown` hears ("content" | "reasoning", text) of each piece as it comes. */
export async function ask(messages, settings, answer, { grown, signal }) {
  const body = { messages, ...fieldsOf(settings), stream: true, stream_options: { include_usage: true } };
  await read("/v1/chat/completions", body, answer, grown, signal);
}

/** Let an answer that was stopped go on where it ends: the same prompt and all that was said, as token ids. */
export async function goOn(messages, settings, answer, { grown, signal }) {
  const before = answer.usage?.completion_tokens ?? answer.pieces ?? 0;
  const prompt = await promptOf(messages, settings, answer, signal);
  const fields = fieldsOf(settings, { chat: false });
  fields.max_tokens ??= 100_000; // a completion would end after 16; the server cuts it to what the context has room for
  const body = { prompt, ...fields, stream: true, stream_options: { include_usage: true } };
  await read("/v1/completions", body, answer, grown, signal);
  if (answer.usage === null) return;
  answer.usage.last = answer.usage.completion_tokens;
  answer.usage.completion_tokens += before;
}

/** Ids of a chat whose last message is not finished: the template's, but for what it writes behind that message. */
async function promptOf(messages, settings, answer, signal) {
  answer.content = answer.content.trimEnd();
  const partial = { role: "assistant", content: answer.content };
  if (answer.reasoning) partial.reasoning_content = answer.reasoning;
  const body = { messages: [...messages, partial], add_generation_prompt: false, return_token_strs: true };
  if (typeof settings.thinking === "boolean") body.enable_thinking = settings.thinking;
  const { tokens, token_strs: texts } = await getJson("/tokenize", { body, signal });
  const end = endOf(texts, answer.content || answer.reasoning.trimEnd());
  if (end === null) throw new ApiError(400, t("error.no_continue"));
  return tokens.slice(0, end);
}

/** How many tokens there are up to the end of a text that stands near the end of them. */
function endOf(texts, wanted) {
  for (let end = texts.length; end > Math.max(0, texts.length - 24); end -= 1) {
    if (endsWith(texts.slice(Math.max(0, end - 32), end).join(""), wanted)) return end;
  }
  return null;
}

/** Whether a text ends as the other does; tokens that are parts of a character are shown as U+FFFD. */
function endsWith(text, wanted) {
  const most = Math.min(text.length, wanted.length, 64);
  for (let back = 1; back <= most; back += 1) {
    if (text.at(-back) === "\ufffd") return true;
    if (text.at(-back) !== wanted.at(-back)) return false;
  }
  return most > 0;
}

async function read(path, body, answer, grown, signal) {
  const begin = performance.now();
  const thought = answer.thinkSeconds;
  Object.assign(answer, { error: null, finish: null, usage: null, pieces: answer.pieces ?? 0 });
  const earlier = answer.pieces;
  let first = null;
  let ended = false;
  const stream = await call(path, { body, signal });
  for await (const data of events(stream)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(500, chunk.error.message, { code: chunk.error.code });
    if (chunk.usage) answer.usage = chunk.usage;
    if (chunk.model) answer.model = chunk.model;
    const choice = chunk.choices?.[0];
    if (choice === undefined) continue;
    if (choice.finish_reason) answer.finish = choice.finish_reason;
    const now = performance.now();
    for (const [kind, text] of pieces(choice)) {
      first ??= now;
      answer.pieces += 1;
      answer[kind] += text;
      if (kind === "reasoning") answer.thinkSeconds = thought + (now - begin) / 1000;
      grown(kind, text);
    }
    answer.firstSeconds = ((first ?? now) - begin) / 1000;
    answer.writeSeconds = (now - (first ?? now)) / 1000;
    answer.paced = answer.pieces - earlier;
  }
  if (!ended) throw new ApiError(0, t("error.broken"));
}

function* pieces({ delta, text, reasoning_content: reasoning }) {
  const thought = delta?.reasoning_content ?? reasoning;
  if (thought) yield ["reasoning", thought];
  const said = delta?.content ?? text;
  if (said) yield ["content", said];
  for (const called of delta?.tool_calls ?? []) {
    const { name, arguments: given } = called.function ?? {};
    if (name) yield ["content", `\n\n\`${name}\` `];
    if (given) yield ["content", given];
  }
}
