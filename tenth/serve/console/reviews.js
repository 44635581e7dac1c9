// The queue of reviews: a list, the answer that is looked at, and what a person decides of it.
import { ApiError, call, getJson } from "./api.js";
import { h, icon, saveFile, say, segmented, toast } from "./dom.js";
import { moment, number, onLanguage } from "./i18n.js";
import { reviewDetail } from "./review_detail.js";
import { STATES } from "./review_words.js";

const PAGE = 50;

export function reviewsView() {
  let filter = "waiting";
  let found = []; // reviews as they were read, oldest first
  let chosen = null; // the id of the one that is shown
  let more = false;
  let asked = 0;
  const list = h("ol", { class: "review-list", tLabel: "reviews.list" });
  const moreButton = h("button", { type: "button", t: "reviews.more", onclick: () => load(found.at(-1)?.id) });
  const count = h("p", { class: "feed-state" });
  const problem = h("p", { class: "notice", role: "status" });
  const detail = reviewDetail({ decide });
  const filters = segmented(
    "reviews.filter",
    ["waiting", "approved", "corrected", "rejected", "all"].map((name) => [name, STATES[name]]),
    filter,
    (name) => {
      filter = name;
      chosen = null;
      load();
    },
  );
  const again = h(
    "button",
    { type: "button", class: "quiet", tLabel: "reviews.refresh", onclick: () => load() },
    icon("again"),
  );
  const exportButton = h(
    "button",
    { type: "button", class: "with-icon", onclick: exportAll },
    icon("down"),
    h("span", { t: "reviews.export" }),
  );
  const head = h("div", { class: "view-head" }, h("h1", { t: "tab.reviews" }), filters, again, count, exportButton);
  const grid = h(
    "div",
    { class: "reviews-grid" },
    h("div", { class: "review-side" }, list, moreButton),
    detail.element,
  );
  const element = h("section", { class: "view panel reviews", tLabel: "tab.reviews" }, head, problem, grid);

  async function load(after) {
    const mine = (asked += 1);
    const query = new URLSearchParams({
      limit: String(PAGE),
      ...(filter === "all" ? {} : { state: filter }),
      ...(after ? { after } : {}),
    });
    let page;
    try {
      page = await getJson(`/v1/reviews?${query}`);
    } catch (error) {
      if (mine === asked) failed(error);
      return;
    }
    if (mine !== asked) return;
    found = after ? [...found, ...page.data] : page.data;
    more = page.has_more;
    say(count, "text", ["reviews.count", { waiting: number(page.waiting) }]);
    problem.hidden = found.length > 0;
    grid.hidden = found.length === 0;
    if (found.length === 0) say(problem, "text", filter === "waiting" ? "reviews.empty" : "reviews.none");
    if (!found.some(({ id }) => id === chosen)) chosen = found[0]?.id ?? null;
    draw();
  }

  function failed(error) {
    problem.hidden = false;
    const off = error instanceof ApiError && error.status === 404;
    exportButton.hidden = off;
    if (found.length === 0) grid.hidden = true;
    if (off) say(problem, "text", "reviews.off");
    else say(problem, "text", ["error.said", { message: error.words ?? error.message }]);
  }

  function draw() {
    list.replaceChildren(...found.map(row));
    moreButton.hidden = !more;
    detail.show(found.find(({ id }) => id === chosen) ?? null);
  }

  function row(review) {
    const asked = review.messages.findLast(({ role }) => role === "user");
    const words = typeof asked?.content === "string" ? asked.content : "";
    const button = h(
      "button",
      { type: "button", class: "review-row", onclick: () => choose(review.id) },
      h(
        "span",
        { class: "row-head" },
        h("span", { class: `state ${review.state}`, t: STATES[review.state] }),
        h("span", { class: "fine" }, moment(review.created)),
      ),
      h("span", { class: "row-text" }, words || review.answer),
      h("span", { class: "fine" }, review.reasons.map(({ text }) => text).join(" · ")),
    );
    if (review.id === chosen) button.setAttribute("aria-current", "true");
    return h("li", {}, button);
  }

  function choose(id) {
    if (id === undefined) return;
    chosen = id;
    draw();
    list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    if (matchMedia("(max-width: 700px)").matches) detail.element.scrollIntoView({ block: "start" });
  }

  function step(by) {
    const at = found.findIndex(({ id }) => id === chosen);
    choose(found[Math.max(0, Math.min(found.length - 1, at + by))]?.id);
    list.querySelector("[aria-current]")?.focus();
  }

  /** Send a decision; whether it was taken. On a conflict the review is read again, so that it can be judged anew. */
  async function decide(review, decision) {
    const path = `/v1/reviews/${encodeURIComponent(review.id)}`;
    try {
      replace(await getJson(path, { body: { ...decision, seen: review.version } }));
      toast("reviews.decided");
      return null;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status !== 409) return ["error.said", { message: error.words }];
      const fresh = await getJson(path).catch(() => null);
      if (fresh !== null) {
        found = found.map((one) => (one.id === fresh.id ? fresh : one));
        draw();
      }
      return "reviews.conflict";
    }
  }

  function replace(review) {
    const at = found.findIndex(({ id }) => id === review.id);
    if (filter === "all" || filter === review.state) found[at] = review;
    else {
      found.splice(at, 1);
      chosen = found[Math.min(at, found.length - 1)]?.id ?? null;
    }
    if (found.length === 0) load();
    else {
      draw();
      refreshCount();
    }
    list.querySelector("[aria-current]")?.focus();
  }

  async function refreshCount() {
    const page = await getJson("/v1/reviews?state=waiting&limit=1").catch(() => null);
    if (page !== null) say(count, "text", ["reviews.count", { waiting: number(page.waiting) }]);
  }

  async function exportAll() {
    try {
      const answer = await call("/v1/reviews/export?state=approved,corrected");
      saveFile("reviews.jsonl", await answer.text(), "application/jsonl");
    } catch (error) {
      failed(error);
    }
  }

  onLanguage(() => found.length && draw());
  return {
    element,
    shown: () => load(),
    hidden: () => {},
    keys: {
      j: () => step(1),
      k: () => step(-1),
      a: () => detail.press("approve"),
      c: () => detail.press("correct"),
      r: () => detail.press("reject"),
    },
  };
}
