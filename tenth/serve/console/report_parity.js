// A report on parity (`tenth verify --json`): the verdict, the gate, the figures, where two models differ.
import { h } from "./dom.js";
import { number, percent, short, t } from "./i18n.js";
import { facts, table } from "./report_parts.js";

export function isParity(data) {
  const object = (value) => typeof value === "object" && value !== null;
  return (
    object(data) &&
    object(data.a) &&
    object(data.b) &&
    object(data.kl) &&
    typeof data.verdict?.text === "string" &&
    Array.isArray(data.layers)
  );
}

export function parityReport(data) {
  const parts = [
    verdict(data),
    models(data),
    figures(data),
    gate(data),
    histogram(data.kl_histogram),
    layers(data),
    places(data),
    notes(data),
  ];
  return h(
    "div",
    { class: "parity" },
    parts.filter((part) => part !== null),
  );
}

function verdict({ verdict: { kind, text }, gate: judged }) {
  const failed = judged?.passed === false || kind === "not_finite" || kind === "damaged";
  const words = judged ? h("strong", { t: judged.passed ? "reports.passed" : "reports.not_passed" }) : null;
  return h("div", { class: `verdict ${failed ? "failed" : judged?.passed ? "passed" : ""}` }, words, h("p", {}, text));
}

function models({ a, b, corpus }) {
  const row = (words, side) => [
    t(words),
    String(side.name),
    [side.format, side.backend, side.dtype].filter(Boolean).join(", "),
    side.parameters ? number(side.parameters) : "–",
    side.bits_per_weight ? number(side.bits_per_weight, 2) : "–",
  ];
  const made = table(
    "reports.models",
    ["reports.side", "reports.model", "reports.form", "reports.parameters", "reports.bits"],
    [row("reports.a", a), row("reports.b", b)],
    "numbers texts",
  );
  if (!corpus) return made;
  const about = t("reports.corpus_of", {
    tokens: number(corpus.tokens ?? 0),
    documents: number(corpus.documents ?? 0),
    windows: number(corpus.windows ?? 0),
    context: number(corpus.context ?? 0),
  });
  return h("div", {}, made, h("p", { class: "fine" }, about));
}

function figures({
  perplexity,
  kl,
  top1,
  positions,
  routing,
  replayed,
  greedy,
  questions,
  embedding_error: embedding,
  head_error: head,
}) {
  const rows = [["reports.positions", number(positions ?? 0)]];
  if (typeof kl.mean === "number")
    rows.push(["reports.kl", `${short(kl.mean)} (p50 ${short(kl.p50)}, p99 ${short(kl.p99)}, max ${short(kl.max)})`]);
  if (typeof perplexity?.ratio === "number")
    rows.push([
      "reports.perplexity",
      `${short(perplexity.a)} → ${short(perplexity.b)} (×${number(perplexity.ratio, 5)})`,
    ]);
  if (typeof top1 === "number") rows.push(["reports.top1", percent(top1, 2)]);
  if (routing)
    rows.push([
      "reports.routing",
      t("reports.routing_of", {
        mean: percent(routing.mean, 2),
        min: percent(routing.min, 2),
        layer: routing.min_layer,
      }),
    ]);
  if (replayed) rows.push(["reports.replayed", `${short(replayed.plain_kl_mean)} → ${short(replayed.kl_mean)}`]);
  if (greedy)
    rows.push([
      "reports.greedy",
      t("reports.greedy_of", {
        mean: number(greedy.mean, 1),
        tokens: greedy.tokens,
        whole: percent(greedy.whole_share, 0),
      }),
    ]);
  if (questions)
    rows.push([
      "reports.questions",
      `A ${percent(questions.a)}, B ${percent(questions.b)} (${number(questions.count)})`,
    ]);
  if (typeof embedding === "number") rows.push(["reports.embedding", short(embedding)]);
  if (typeof head === "number") rows.push(["reports.head", short(head)]);
  return facts(rows);
}

function gate({ gate: judged }) {
  if (!judged) return null;
  const rows = judged.bars.map(({ name, bar, value, passed }) => [
    name,
    `${name.startsWith("max_") ? "≤" : "≥"} ${short(bar)}`,
    value === null ? t("reports.not_measured") : short(value),
    { text: t(passed ? "reports.passed" : "reports.not_passed"), kind: passed ? "good" : "bad" },
  ]);
  return h(
    "div",
    {},
    h("h3", { t: "reports.gate" }),
    table("reports.gate", ["reports.bar", "reports.limit", "reports.value", "reports.result"], rows),
  );
}

/** How the divergences of positions lie. */
function histogram(found) {
  if (!found?.counts?.length) return null;
  const most = Math.max(...found.counts, 1);
  const columns = found.counts.map((count, at) => {
    const column = h("span", {
      class: "column",
      title: `${short(found.edges?.[at] ?? 0)} – ${short(found.edges?.[at + 1] ?? 0)}: ${number(count)}`,
    });
    column.style.setProperty("--part", `${(100 * count) / most}%`);
    return column;
  });
  const ends = h(
    "div",
    { class: "scale-marks" },
    h("span", {}, short(found.edges?.[0] ?? 0)),
    h("span", {}, short(found.edges?.at(-1) ?? 0)),
  );
  return h(
    "div",
    {},
    h("h3", { t: "reports.histogram" }),
    h("div", { class: "histogram", role: "img", tLabel: "reports.histogram" }, columns),
    ends,
  );
}

function layers({ layers: rows, routing }) {
  if (!rows.length) return null;
  const names = [...new Set(rows.flatMap(({ parts }) => Object.keys(parts ?? {})))];
  const most = Math.max(...rows.map(({ error }) => error ?? 0), 1e-9);
  const agreement = new Map((routing?.layers ?? []).map((one) => [one.layer, one.agreement]));
  const made = rows.map((row) => [
    row.layer,
    { bar: (row.error ?? 0) / most, text: short(row.error) },
    ...names.map((name) => short(row.parts?.[name])),
    agreement.has(row.layer) ? percent(agreement.get(row.layer), 1) : "–",
    typeof row.worst_expert === "number" ? `${row.worst_expert} (×${number(row.worst_expert_ratio ?? 0, 1)})` : "–",
  ]);
  const grid = table(
    "reports.layers",
    ["reports.layer", "reports.error", ...names.map(() => "reports.part"), "reports.agreement", "reports.worst"],
    made,
  );
  names.forEach((name, at) => {
    const head = grid.querySelectorAll("thead th")[at + 2];
    delete head.dataset.said;
    head.textContent = name;
  });
  return h("div", {}, h("h3", { t: "reports.layers" }), grid);
}

function places({ kl_by_place: rows }) {
  if (!rows?.length) return null;
  const most = Math.max(...rows.map(({ mean }) => mean ?? 0), 1e-12);
  const made = rows.map(({ from, to, mean, low, high }) => [
    `${number(from)} – ${number(to)}`,
    { bar: (mean ?? 0) / most, text: short(mean) },
    `${short(low)} – ${short(high)}`,
  ]);
  return h(
    "div",
    {},
    h("h3", { t: "reports.by_place" }),
    table("reports.by_place", ["reports.place", "reports.kl", "reports.between"], made),
  );
}

function notes({ notes: lines }) {
  return lines?.length
    ? h(
        "ul",
        { class: "fine" },
        lines.map((line) => h("li", {}, String(line))),
      )
    : null;
}
