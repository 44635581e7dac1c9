// What the server does: speed, requests, cache, and how much of the memory's speed goes into it.
import { h, say } from "./dom.js";
import { feed } from "./feed.js";
import { number, onLanguage, percent, span, t } from "./i18n.js";
import { Spark } from "./spark.js";

const gigabytes = (bytes) => `${number(bytes / 1e9, 1)} GB/s`;

/** A card: its words, the number of the history that is its line, its value and what stands below it. */
const CARDS = [
  {
    words: "load.generated",
    line: "generated",
    value: ({ speed }) => number(speed.generated_per_s, 1),
    unit: "load.per_s",
  },
  {
    words: "load.limit",
    line: "share",
    most: 1,
    value: ({ speed }) => (speed.limit ? percent(speed.limit.share) : "–"),
    below: ({ speed }) =>
      speed.limit
        ? t("load.limit_of", {
            read: gigabytes(speed.limit.bytes_per_s),
            machine: gigabytes(speed.limit.machine_bytes_per_s),
          })
        : t("load.no_limit"),
  },
  { words: "load.prompt", line: "prompt", value: ({ speed }) => number(speed.prompt_per_s, 1), unit: "load.per_s" },
  {
    words: "load.cache",
    line: "cache",
    most: 1,
    value: ({ cache }) => percent(cache.tokens ? cache.used_tokens / cache.tokens : 0),
    below: ({ cache }) => t("load.cache_of", { used: number(cache.used_tokens), all: number(cache.tokens) }),
  },
  { words: "load.running", line: "running", value: ({ requests }) => number(requests.running) },
  { words: "load.waiting", line: "waiting", value: ({ requests }) => number(requests.waiting) },
  {
    words: "load.hits",
    line: "hits",
    most: 1,
    value: ({ cache }) => percent(cache.prefix_hit_rate),
    below: () => t("load.hits_say"),
  },
];

export function loadView() {
  let data = null;
  let leave = null;
  const cards = CARDS.map(card);
  const rows = h("tbody", {});
  const heads = ["load.id", "load.key", "load.state", "load.prompt_tokens", "load.generated_tokens", "load.seconds"];
  const table = h(
    "div",
    { class: "table-scroll", tabIndex: 0, role: "group", tLabel: "load.requests" },
    h(
      "table",
      { class: "numbers requests" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heads.map((words) => h("th", { scope: "col", t: words })),
        ),
      ),
      rows,
    ),
  );
  const none = h("p", { class: "fine", t: "load.none" });
  const problem = h("p", { class: "notice" });
  const about = h("p", { class: "feed-state" });
  const content = h(
    "div",
    {},
    h(
      "div",
      { class: "cards" },
      cards.map(({ element: made }) => made),
    ),
    h("h2", { t: "load.requests" }),
    table,
    none,
  );
  const element = h(
    "section",
    { class: "view panel", tLabel: "tab.load" },
    h("div", { class: "view-head" }, h("h1", { t: "tab.load" }), about),
    problem,
    content,
  );

  function tick(next) {
    data = next;
    draw();
  }

  function draw() {
    content.hidden = false;
    problem.hidden = true;
    for (const one of cards) one.draw(data);
    const { list } = data.requests;
    rows.replaceChildren(...list.map(requestRow));
    table.hidden = list.length === 0;
    none.hidden = list.length > 0;
    if (feed.state === "live") say(about, "text", ["load.about", { model: data.model, time: span(data.uptime_s) }]);
  }

  function state(name, why) {
    const words = { idle: "feed.idle", connecting: "feed.connecting", lost: "feed.lost", off: "feed.off" }[name];
    about.dataset.state = name;
    if (words) say(about, "text", words);
    if (data !== null) return;
    content.hidden = true;
    problem.hidden = false;
    say(problem, "text", name === "off" ? "feed.off_long" : (words ?? "feed.connecting"));
    if (why) problem.textContent = why;
  }

  onLanguage(() => data !== null && draw());
  return { element, shown: () => (leave = feed.watch({ tick, state })), hidden: () => leave?.(), keys: {} };
}

function card({ words, line, most = null, value, unit, below }) {
  const spark = new Spark(most);
  const big = h("span", { class: "big" });
  const under = h("p", { class: "fine" });
  const element = h(
    "div",
    { class: "card" },
    h("h2", { t: words }),
    h("p", {}, big, unit ? h("span", { class: "unit", t: unit }) : null),
    spark.element,
    under,
  );
  function draw(data) {
    big.textContent = value(data);
    under.textContent = below?.(data) ?? peak(line, most);
    spark.show(feed.history.map((point) => [point.at, point[line]]));
  }
  return { element, draw };
}

function peak(line, most) {
  if (most !== null) return "";
  const highest = Math.max(0, ...feed.history.map((point) => point[line] ?? 0));
  return t("load.peak", { most: number(highest, 1) });
}

function requestRow(one) {
  const words = one.state === "running" ? "load.is_running" : "load.is_waiting";
  return h(
    "tr",
    {},
    h("td", { class: "mono" }, one.id),
    h("td", {}, one.key),
    h("td", {}, h("span", { class: `state ${one.state}`, t: words })),
    ...[number(one.prompt_tokens), number(one.generated_tokens), number(one.seconds, 1, 1)].map((text) =>
      h("td", { class: "right" }, text),
    ),
  );
}
