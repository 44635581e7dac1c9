// One review: the chat that led to the answer, why it is here, and the decision.
import { h, say } from "./dom.js";
import { moment, number } from "./i18n.js";
import { markdown } from "./markdown.js";
import { REASONS, STATES } from "./review_words.js";

/** `decide(review, decision)` sends it, and gives words where it was not taken. */
export function reviewDetail({ decide }) {
  let review = null;
  let mode = "read";
  const problem = h("p", { class: "bad-words", role: "alert" });
  const note = h("input", { id: "review-note", type: "text", maxlength: 10000 });
  const editor = h("textarea", { id: "review-correction", rows: 12 });
  const body = h("div", { class: "review-body" });
  const buttons = {
    approve: h("button", { type: "button", class: "primary", t: "reviews.approve", onclick: () => press("approve") }),
    correct: h("button", { type: "button", t: "reviews.correct", onclick: () => press("correct") }),
    reject: h("button", { type: "button", class: "danger", t: "reviews.reject", onclick: () => press("reject") }),
  };
  const correcting = h(
    "div",
    { class: "correcting" },
    h("label", { for: "review-correction", t: "reviews.correction" }),
    editor,
    h(
      "div",
      { class: "row end" },
      h("button", { type: "button", t: "cancel", onclick: () => setMode("read") }),
      h("button", { type: "button", class: "primary", t: "reviews.save", onclick: saveCorrection }),
    ),
  );
  const judge = h(
    "div",
    { class: "judge" },
    h("label", { for: "review-note", t: "reviews.note" }),
    note,
    h("div", { class: "row" }, Object.values(buttons)),
  );
  const element = h("article", { class: "card review", tLabel: "reviews.one" }, body, correcting, problem, judge);
  editor.addEventListener("keydown", (event) => {
    if (event.key === "Escape") setMode("read");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) saveCorrection();
  });

  function setMode(next) {
    mode = next;
    correcting.hidden = mode !== "correct";
    judge.querySelector(".row").hidden = mode === "correct";
    if (mode === "correct") {
      editor.value = review.correction ?? review.answer;
      editor.focus();
    } else if (element.contains(document.activeElement)) buttons.correct.focus();
  }

  function press(decision) {
    if (review === null || mode === "correct") return;
    if (decision === "correct") setMode("correct");
    else send({ decision });
  }

  function saveCorrection() {
    send({ decision: "correct", correction: editor.value });
  }

  async function send(decision) {
    const words = note.value.trim();
    const all = Object.values(buttons);
    for (const button of all) button.disabled = true;
    const refused = await decide(review, words || review.note ? { ...decision, note: words } : decision);
    for (const button of all) button.disabled = false;
    say(problem, "text", refused ?? "");
  }

  function show(next) {
    const same = next !== null && next.id === review?.id && next.version === review?.version;
    review = next;
    element.hidden = next === null;
    if (next === null) return;
    body.replaceChildren(...parts(next));
    if (same) return;
    note.value = next.note ?? "";
    say(problem, "text", "");
    setMode("read");
  }

  setMode("read");
  return { element, show, press };
}

function parts(review) {
  const facts = [review.model, review.key, moment(review.created), review.id].filter(Boolean).join(" · ");
  const reasons = review.reasons.map(({ kind, text }) =>
    h("li", {}, h("span", { class: "kind", t: REASONS[kind] ?? "reviews.rule" }), text),
  );
  const sure =
    review.confidence === null || review.confidence === undefined
      ? null
      : h("li", {}, h("span", { class: "kind", t: "reviews.confidence" }), number(review.confidence, 3));
  const thought = review.reasoning
    ? h(
        "details",
        { class: "think" },
        h("summary", { t: "chat.thoughts" }),
        h("div", { class: "thought" }, review.reasoning),
      )
    : null;
  const corrected = review.correction ? [h("h2", { t: "reviews.correction" }), markdown(review.correction)] : [];
  const decided = review.decided
    ? h("p", {
        class: "fine",
        t: ["reviews.decided_by", { name: review.decided_by ?? "–", when: moment(review.decided) }],
      })
    : null;
  return [
    h(
      "div",
      { class: "row-head" },
      h("span", { class: `state ${review.state}`, t: STATES[review.state] }),
      h("span", { class: "fine" }, facts),
    ),
    h("ul", { class: "reasons" }, reasons, sure),
    ...review.messages.map(said),
    h("h2", { t: "reviews.answer" }),
    thought,
    markdown(review.answer ?? ""),
    ...corrected,
    decided,
  ].filter((part) => part !== null);
}

function said({ role, content }) {
  const text = typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("\n");
  return h("div", { class: "said" }, h("span", { class: "kind" }, role), h("div", { class: "said-text" }, text));
}
