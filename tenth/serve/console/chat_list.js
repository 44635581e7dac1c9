// The conversations beside the chat.
import { answerOf, conversation, conversations, forget, messagesOf } from "./chat_store.js";
import { h, icon, iconButton, saveFile } from "./dom.js";

/** `actions`: open(id), begin(), removed(id), close(). */
export function conversationList(actions) {
  const list = h("ul", { class: "conversations" });
  const begin = h(
    "button",
    { type: "button", class: "wide-button", onclick: actions.begin },
    icon("plus"),
    h("span", { t: "chat.new" }),
  );
  const all = h(
    "button",
    { type: "button", class: "quiet wide", onclick: exportAll },
    icon("down"),
    h("span", { t: "chat.export_all" }),
  );
  const panel = h(
    "aside",
    { class: "history drawer left", tLabel: "chat.history" },
    h("div", { class: "drawer-head" }, begin, iconButton("close", "close", actions.close, "drawer-close")),
    list,
    h("p", { class: "fine", t: "chat.kept_here" }),
    all,
  );
  function show(current) {
    const rows = conversations().map((one) => row(one, one.id === current));
    list.replaceChildren(...(rows.length ? rows : [h("li", { class: "fine", t: "chat.none_kept" })]));
    all.hidden = rows.length === 0;
  }
  function row(one, chosen) {
    const open = h(
      "button",
      { type: "button", class: "conversation", onclick: () => actions.open(one.id) },
      one.title || "…",
    );
    if (chosen) open.setAttribute("aria-current", "true");
    const remove = iconButton("trash", "chat.delete", () => {
      forget(one.id);
      actions.removed(one.id);
    });
    return h("li", {}, open, remove);
  }
  return { panel, show };
}

/** A conversation as it is exported: messages, with thoughts and counts. */
export function exported(one) {
  const turns = one.turns.map((turn) => {
    if (turn.role === "user") return { role: "user", content: turn.content };
    const { content, reasoning, usage, model } = answerOf(turn);
    return {
      role: "assistant",
      content,
      ...(reasoning ? { reasoning_content: reasoning } : {}),
      ...(model ? { model } : {}),
      ...(usage ? { usage } : {}),
    };
  });
  const system = messagesOf([], one.settings?.system);
  return {
    title: one.title,
    changed: new Date(one.changed).toISOString(),
    settings: one.settings,
    messages: [...system, ...turns],
  };
}

function exportAll() {
  const found = conversations()
    .map(({ id }) => conversation(id))
    .filter((one) => one !== null);
  saveFile("conversations.json", JSON.stringify(found.map(exported), null, 1), "application/json");
}
