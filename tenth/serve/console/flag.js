// A person flags an answer: it goes to the queue of reviews.
import { ApiError, getJson } from "./api.js";
import { openDialog } from "./dialogs.js";
import { h, toast } from "./dom.js";
import { t } from "./i18n.js";

/** Ask for a note, and put the answer to these messages into the queue. */
export function flagAnswer(messages, answer) {
  const note = h("textarea", { id: "flag-note", rows: 3, maxlength: 2000 });
  const problem = h("p", { class: "bad-words", role: "alert" });
  openDialog("flag.title", [h("label", { for: "flag-note", t: "flag.note" }), note, problem], "flag.send", async () => {
    const body = { messages, answer: answer.content };
    if (answer.reasoning) body.reasoning = answer.reasoning;
    if (answer.model) body.model = answer.model;
    if (note.value.trim()) body.note = note.value.trim();
    try {
      await getJson("/v1/reviews", { body });
    } catch (error) {
      problem.textContent =
        error instanceof ApiError && error.status === 404 ? t("reviews.off") : (error.words ?? error.message);
      return false;
    }
    toast("flag.done");
    return true;
  });
}
