// What reports are made of: facts in a row, tables with numbers and bars.
import { h } from "./dom.js";

/** Names and values; a value is a text. */
export function facts(rows) {
  return h(
    "dl",
    { class: "facts wide-facts" },
    rows.map(([words, value]) => h("div", {}, h("dt", { t: words }), h("dd", {}, value))),
  );
}

/**
 * A table that scrolls by itself. Cells are texts, or {bar: 0 to 1, text, kind}; heads are keys of words, `kind` is its
 * class.
 */
export function table(label, heads, rows, kind = "numbers") {
  const cells = (row) =>
    row.map((cell, at) => {
      const made = h(at === 0 ? "th" : "td", at === 0 ? { scope: "row" } : {});
      made.append(...(typeof cell === "object" && cell !== null ? barCell(cell) : [String(cell)]));
      if (cell?.kind) made.classList.add(cell.kind);
      return made;
    });
  const body = h(
    "tbody",
    {},
    rows.map((row) => h("tr", {}, cells(row))),
  );
  const head = h(
    "thead",
    {},
    h(
      "tr",
      {},
      heads.map((words) => h("th", { scope: "col", t: words })),
    ),
  );
  return h(
    "div",
    { class: "table-scroll", tabIndex: 0, role: "group", tLabel: label },
    h("table", { class: kind }, head, body),
  );
}

function barCell({ bar, text }) {
  if (bar === undefined) return [text];
  const fill = h("span", { class: "fill" });
  fill.style.setProperty("--part", `${100 * Math.max(0, Math.min(1, bar))}%`);
  return [h("span", { class: "bar-cell" }, fill), text];
}
