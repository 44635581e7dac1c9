// A turn on the page: what a person said, or an answer with its thoughts, its figures and what can be done with it.
import { answerOf } from "./chat_store.js";
import { copyText, h, icon, iconButton, say, toast } from "./dom.js";
import { number, span, t } from "./i18n.js";
import { GrowingMarkdown } from "./markdown.js";

async function copy(text) {
  if (await copyText(text)) toast("chat.copied");
}

/** What a person said. `actions.edit(text)` sends another text in its place. */
export function userTurn(turn, actions) {
  const text = h("div", { class: "bubble" }, turn.content);
  const foot = h(
    "div",
    { class: "turn-foot" },
    iconButton("copy", "chat.copy", () => copy(turn.content)),
    iconButton("edit", "chat.edit", edit),
  );
  const element = h("article", { class: "turn user", tLabel: "chat.you" }, text, foot);
  function edit() {
    const area = h("textarea", { rows: 3, value: turn.content, tLabel: "chat.edit" });
    const leave = () => form.replaceWith(text, foot);
    const form = h(
      "form",
      { class: "edit" },
      area,
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", t: "cancel", onclick: leave }),
        h("button", { class: "primary", t: "chat.resend" }),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (area.value.trim()) actions.edit(area.value.trim());
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    text.replaceWith(form);
    foot.remove();
    area.focus();
  }
  return element;
}

/** An answer. While it grows `grown` is called with each piece; `show` draws how it stands. */
export class AnswerTurn {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.thoughtText = h("div", { class: "thought" });
    this.summary = h("summary", {});
    this.thoughts = h("details", { class: "think" }, this.summary, this.thoughtText);
    this.prose = h("div", { class: "prose" });
    this.problem = h("div", { class: "problem", role: "alert" });
    this.meta = h("span", { class: "meta" });
    this.foot = h("div", { class: "turn-foot" });
    this.element = h(
      "article",
      { class: "turn assistant", tLabel: "chat.answer" },
      this.thoughts,
      this.prose,
      this.problem,
      this.foot,
    );
    this.show(false);
  }

  get answer() {
    return answerOf(this.turn);
  }

  /** Draw all of it; `running` while more is coming. */
  show(running) {
    clearInterval(this.clock);
    this.growing = new GrowingMarkdown(this.prose);
    this.growing.text = this.answer.content;
    if (running) this.growing.draw();
    else this.growing.finish();
    this.thoughtText.textContent = this.answer.reasoning;
    this.figures(running);
    this.showFoot(running);
    this.showProblem(running);
    if (running) this.clock = setInterval(() => this.figures(true), 250);
  }

  grown(kind, text) {
    if (kind === "content") this.growing.push(text);
    else this.thoughtText.append(text);
  }

  /** Time of thinking and speed, as far as they are known. */
  figures(running) {
    const { answer } = this;
    const thinking = running && answer.reasoning !== "" && answer.content === "";
    this.thoughts.hidden = answer.reasoning === "";
    this.element.classList.toggle("thinking", thinking);
    this.element.classList.toggle("waiting", running && answer.reasoning === "" && answer.content === "");
    say(this.summary, "text", [thinking ? "chat.thinking" : "chat.thought", { time: span(answer.thinkSeconds) }]);
    this.meta.textContent = metaOf(answer, running);
  }

  showFoot(running) {
    const { answer, turn, actions } = this;
    if (running) {
      this.foot.replaceChildren(this.meta);
      return;
    }
    const open = answer.finish === null || answer.finish === "length";
    const parts = [
      iconButton("copy", "chat.copy", () => copy(answer.content)),
      iconButton("again", "chat.regenerate", actions.regenerate),
      open && (answer.content || answer.reasoning) ? this.goOnButton() : null,
      iconButton("flag", "chat.flag", () => actions.flag(answer)),
      turn.answers.length > 1 ? this.pager() : null,
      this.meta,
    ];
    this.foot.replaceChildren(...parts.filter((part) => part !== null));
  }

  goOnButton() {
    return h(
      "button",
      { type: "button", class: "quiet wide", onclick: this.actions.goOn },
      icon("go"),
      h("span", { t: "chat.go_on" }),
    );
  }

  pager() {
    const { turn } = this;
    const move = (step) => {
      turn.at = (turn.at + step + turn.answers.length) % turn.answers.length;
      this.actions.chosen();
      this.show(false);
    };
    return h(
      "span",
      { class: "pager" },
      iconButton("left", "chat.other_before", () => move(-1)),
      h("span", {}, `${turn.at + 1} / ${turn.answers.length}`),
      iconButton("right", "chat.other_next", () => move(1)),
    );
  }

  showProblem(running) {
    const { error } = this.answer;
    this.problem.hidden = running || !error;
    if (this.problem.hidden) {
      this.problem.replaceChildren();
      return;
    }
    const retry = h("button", { type: "button", onclick: this.actions.retry });
    this.problem.replaceChildren(h("p", {}, error.words), retry);
    let left = Math.ceil(((error.until ?? 0) - Date.now()) / 1000);
    const tick = () => {
      retry.disabled = left > 0;
      say(retry, "text", left > 0 ? ["chat.retry_in", { seconds: left }] : "chat.retry");
      left -= 1;
      if (left >= 0 && this.problem.isConnected) setTimeout(tick, 1000);
    };
    queueMicrotask(tick);
  }
}

function metaOf(answer, running) {
  const counted = answer.usage?.completion_tokens;
  const tokens = counted ?? answer.pieces ?? 0;
  if (tokens === 0) return "";
  const about = counted === undefined ? "≈ " : "";
  const parts = [about + t("chat.tokens", { tokens: number(tokens) })];
  const paced = answer.usage?.last ?? counted ?? answer.paced ?? tokens;
  if (answer.writeSeconds > 0.05 && paced > 1)
    parts.push(about + t("chat.speed", { speed: number((paced - 1) / answer.writeSeconds, 1) }));
  if (running) return parts.join(" · ");
  if (answer.firstSeconds) parts.push(t("chat.first", { time: span(answer.firstSeconds) }));
  if (answer.usage)
    parts.push(
      t("chat.prompt", {
        tokens: number(answer.usage.prompt_tokens),
        cached: number(answer.usage.prompt_tokens_details?.cached_tokens ?? 0),
      }),
    );
  if (answer.finish === "length") parts.push(t("chat.length"));
  if (answer.finish === "content_filter") parts.push(t("chat.filtered"));
  if (answer.finish === null && !answer.error) parts.push(t("chat.stopped"));
  return parts.join(" · ");
}
