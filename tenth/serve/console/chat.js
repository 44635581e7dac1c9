// The chat: a thread, a place to write, conversations on one side and settings on the other.
import { ApiError } from "./api.js";
import { ask, emptyAnswer, goOn } from "./chat_answer.js";
import { conversationList, exported } from "./chat_list.js";
import { lastSettings, settingsPanel } from "./chat_settings.js";
import { answerOf, conversation, keepConversation, messagesOf, newConversation } from "./chat_store.js";
import { AnswerTurn, userTurn } from "./chat_turn.js";
import { composer } from "./composer.js";
import { h, iconButton, saveFile, toast } from "./dom.js";
import { flagAnswer } from "./flag.js";
import { onLanguage, t } from "./i18n.js";
import { lookOf, setLook } from "./state.js";

const EXAMPLES = ["chat.example_1", "chat.example_2", "chat.example_3"];

export function chatView() {
  let shown = newConversation(lastSettings());
  let run = null; // {conversation, turn, view, stop}: the answer that is coming
  let follows = true; // whether the thread stays at its end as it grows
  const settings = settingsPanel(
    (next) => {
      shown.settings = { ...next };
      if (shown.turns.length) save(shown);
    },
    () => drawer("settings", false),
  );
  const list = conversationList({
    open: (id) => open(id),
    begin: () => open(null),
    removed: (id) => {
      if (run?.conversation.id === id) run.stop.abort();
      if (id === shown.id) open(null);
      else list.show(shown.id);
    },
    close: () => drawer("history", false),
  });
  const thread = h("div", { class: "thread" });
  const scroller = h("div", { class: "scroller", tabIndex: 0, role: "group", tLabel: "chat.thread" }, thread);
  const down = iconButton("down", "chat.to_end", () => toEnd(true), "to-end");
  down.hidden = true;
  const title = h("h1", { class: "chat-title" });
  const write = composer({ send, stop: () => run?.stop.abort() });
  const save_file = iconButton("down", "chat.export", () =>
    saveFile("conversation.json", JSON.stringify(exported(shown), null, 1), "application/json"),
  );
  const bar = h(
    "div",
    { class: "chat-bar" },
    iconButton("list", "chat.history", () => drawer("history")),
    title,
    iconButton("plus", "chat.new", () => open(null)),
    save_file,
    iconButton("settings", "set.title", () => drawer("settings")),
  );
  const element = h(
    "section",
    { class: "view chat", tLabel: "tab.chat" },
    list.panel,
    h("div", { class: "chat-main" }, bar, scroller, down, write.element),
    settings.panel,
  );

  scroller.addEventListener(
    "scroll",
    () => {
      follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
      down.hidden = follows;
    },
    { passive: true },
  );
  scroller.addEventListener("pointerdown", () => wide() || closeDrawers());
  new ResizeObserver(() => toEnd(false)).observe(thread);
  onLanguage(() => {
    drawTitle();
    for (const { view } of views) view?.figures(run?.view === view);
  });

  let views = [];
  const wide = () => matchMedia("(min-width: 1100px)").matches;
  for (const name of ["history", "settings"]) element.classList.toggle(`no-${name}`, !lookOf(name, true) || !wide());

  function drawer(name, open = element.classList.contains(`no-${name}`)) {
    if (open && !wide()) for (const other of ["history", "settings"]) element.classList.add(`no-${other}`);
    element.classList.toggle(`no-${name}`, !open);
    if (wide()) setLook(name, open);
  }

  function closeDrawers() {
    drawer("history", false);
    drawer("settings", false);
  }

  function toEnd(always) {
    if (always || follows) scroller.scrollTop = scroller.scrollHeight;
  }

  function open(id) {
    const found = id === null ? null : run?.conversation.id === id ? run.conversation : conversation(id);
    shown = found ?? newConversation(lastSettings());
    if (!wide()) drawer("history", false);
    draw();
    write.focus();
  }

  function save(one) {
    if (!keepConversation(one)) toast("chat.not_kept");
    list.show(shown.id);
  }

  function drawTitle() {
    title.textContent = shown.title || t("chat.new");
    save_file.hidden = shown.turns.length === 0;
  }

  function draw() {
    settings.show(shown.settings ?? {});
    list.show(shown.id);
    drawTitle();
    views = shown.turns.map((turn, at) => drawnTurn(turn, at));
    thread.replaceChildren(...(views.length ? views.map(({ element: drawn }) => drawn) : [welcome()]));
    follows = true;
    toEnd(true);
    write.busy(run !== null);
  }

  function welcome() {
    const examples = EXAMPLES.map((words) => h("button", { type: "button", t: words, onclick: () => send(t(words)) }));
    return h("div", { class: "welcome" }, h("h2", { t: "chat.welcome" }), h("div", { class: "examples" }, examples));
  }

  function drawnTurn(turn, at) {
    if (turn.role === "user") return { element: userTurn(turn, { edit: (text) => edit(at, text) }) };
    const view = new AnswerTurn(turn, {
      regenerate: () => regenerate(at),
      goOn: () => goOnAt(at),
      retry: () => (answerOf(turn).content ? goOnAt(at) : regenerate(at)),
      chosen: () => save(shown),
      flag: (answer) => flagAnswer(messagesOf(shown.turns.slice(0, at), shown.settings?.system), answer),
    });
    if (run?.turn === turn) {
      run.view = view;
      view.show(true);
    }
    return { element: view.element, view };
  }

  function send(text) {
    if (run !== null) return false;
    shown.title ||= text.replace(/\s+/g, " ").replace(/^(.{80}).+/su, "$1…");
    shown.turns.push({ role: "user", content: text });
    answerNew();
    return true;
  }

  function edit(at, text) {
    if (run !== null) return;
    shown.turns.length = at;
    send(text);
  }

  function answerNew() {
    const turn = { role: "assistant", at: 0, answers: [emptyAnswer()] };
    shown.turns.push(turn);
    begin(turn, ask);
  }

  function regenerate(at) {
    if (run !== null) return;
    const turn = shown.turns[at];
    shown.turns.length = at + 1;
    const last = answerOf(turn);
    if (last.error && !last.content && !last.reasoning) turn.answers.splice(turn.at, 1);
    turn.answers.push(emptyAnswer());
    turn.at = turn.answers.length - 1;
    begin(turn, ask);
  }

  function goOnAt(at) {
    if (run !== null) return;
    shown.turns.length = at + 1;
    begin(shown.turns[at], goOn);
  }

  async function begin(turn, how) {
    const mine = { conversation: shown, turn, view: null, stop: new AbortController() };
    const answer = answerOf(turn);
    const before = messagesOf(shown.turns.slice(0, shown.turns.indexOf(turn)), shown.settings?.system);
    run = mine;
    shown.changed = Date.now();
    answer.error = null;
    save(shown);
    draw();
    const keeper = setInterval(() => save(mine.conversation), 5000);
    const grown = (kind, text) => mine.view?.grown(kind, text);
    try {
      await how(before, mine.conversation.settings ?? {}, answer, { grown, signal: mine.stop.signal });
    } catch (error) {
      if (error.name !== "AbortError") answer.error = problemOf(error);
    } finally {
      clearInterval(keeper);
      run = null;
      mine.view?.show(false);
      mine.conversation.changed = Date.now();
      save(mine.conversation);
      write.busy(false);
    }
  }

  window.addEventListener("pagehide", () => run && save(run.conversation));
  draw();
  return {
    element,
    shown: () => matchMedia("(pointer: fine)").matches && write.focus(),
    hidden: () => {},
    keys: {
      n: () => open(null),
      i: () => write.focus(),
      s: () => drawer("settings"),
      Escape: () => (run === null ? wide() || closeDrawers() : run.stop.abort()),
    },
  };
}

function problemOf(error) {
  if (!(error instanceof ApiError)) console.error(error);
  const words = error instanceof ApiError ? error.words : t("error.page", { message: error.message });
  return { words, until: error.retryAfter ? Date.now() + 1000 * error.retryAfter : null };
}
