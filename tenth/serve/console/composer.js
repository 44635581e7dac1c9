// Where one writes: it grows with the text, Enter sends, and its button stops what is being answered.
import { h, icon, say } from "./dom.js";

/** `send(text)` says whether it was taken; `stop()` ends what is coming. */
export function composer({ send, stop }) {
  let running = false;
  const area = h("textarea", { id: "message", rows: 1, tPlaceholder: "chat.placeholder", tLabel: "chat.placeholder" });
  const button = h("button", { type: "submit", class: "send primary", tLabel: "chat.send" }, icon("send"));
  const form = h(
    "form",
    { class: "composer" },
    h("div", { class: "composer-box" }, area, button),
    h("p", { class: "fine keys-hint", t: "chat.keys" }),
  );
  area.addEventListener("input", fit);
  area.addEventListener("keydown", (event) => {
    // Enter that ends the choice of a Chinese word is not meant for the chat (229: Safari says it so)
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    if (!running) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) stop();
    else if (area.value.trim() && send(area.value.trim())) {
      area.value = "";
      fit();
    }
  });
  function fit() {
    area.rows = Math.min(12, Math.max(1, area.value.split("\n").length));
    while (area.rows < 12 && area.scrollHeight > area.clientHeight + 2) area.rows += 1;
  }
  function busy(now) {
    running = now;
    button.replaceChildren(icon(now ? "stop" : "send"));
    button.classList.toggle("stopping", now);
    say(button, "label", now ? "chat.stop" : "chat.send");
  }
  return { element: form, busy, focus: () => area.focus() };
}
