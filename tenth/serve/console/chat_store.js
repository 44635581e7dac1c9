// Conversations, in this browser alone: the newest hundred, and no more than four megabytes.
//
// A conversation is {id, title, changed, settings, turns}; a turn is {role: "user", content} or {role: "assistant", at,
// answers}, where answers are all that were drawn for it and `at` is the one that counts.
import { keep, kept } from "./state.js";

const MOST = 100;
const MOST_CHARACTERS = 4_000_000;
const INDEX = "tenth.chats";
const place = (id) => `tenth.chat.${id}`;

/** What there is: {id, title, changed, size}, newest first. */
export function conversations() {
  const found = kept(INDEX, []);
  return Array.isArray(found) ? found.filter((one) => typeof one?.id === "string") : [];
}

export function conversation(id) {
  const found = kept(place(id), null);
  return Array.isArray(found?.turns) ? found : null;
}

export function newConversation(settings) {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", changed: Date.now(), settings, turns: [] };
}

/** Keep one; the oldest others make room. False where the browser keeps nothing. */
export function keepConversation(one) {
  const size = JSON.stringify(one).length;
  const entry = { id: one.id, title: one.title, changed: one.changed, size };
  let entries = [entry, ...conversations().filter(({ id }) => id !== one.id)].sort((a, b) => b.changed - a.changed);
  const total = () => entries.reduce((sum, each) => sum + (each.size ?? 0), 0);
  const oldest = () => entries.findLast(({ id }) => id !== one.id);
  while (entries.length > 1 && (entries.length > MOST || total() > MOST_CHARACTERS))
    entries = without(entries, oldest().id);
  while (!keep(place(one.id), one)) {
    if (oldest() === undefined) return false;
    entries = without(entries, oldest().id);
  }
  return keep(INDEX, entries);
}

function without(entries, id) {
  keep(place(id), null);
  return entries.filter((one) => one.id !== id);
}

export function forget(id) {
  keep(INDEX, without(conversations(), id));
}

/** The answer of a turn that counts. */
export const answerOf = (turn) => turn.answers[turn.at];

/** Turns as messages of the API; thoughts of earlier turns stay out of it, as their templates leave them out. */
export function messagesOf(turns, system) {
  const found = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") found.push({ role: "user", content: turn.content });
    else if (answerOf(turn).content) found.push({ role: "assistant", content: answerOf(turn).content });
  }
  return found;
}
