// Reports from files, in the browser alone: what `tenth profiles` and `tenth verify` print with --json.
import { h, icon, iconButton } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { comparisonReport, isComparison, isProfile, profileReport } from "./report_profile.js";
import { isParity, parityReport } from "./report_parity.js";

const LARGEST = 64 << 20;
const KINDS = [
  [isProfile, profileReport],
  [isComparison, comparisonReport],
  [isParity, parityReport],
];

export function reportsView() {
  const input = h("input", {
    type: "file",
    id: "report-file",
    accept: ".json,application/json",
    class: "offstage",
    tabIndex: -1,
    "aria-hidden": "true",
  });
  input.multiple = true;
  const pick = h(
    "button",
    { type: "button", class: "primary with-icon", onclick: () => input.click() },
    icon("open"),
    h("span", { t: "reports.pick" }),
  );
  const drop = h(
    "div",
    { class: "drop" },
    h("p", { t: "reports.drop" }),
    pick,
    input,
    h(
      "pre",
      { class: "fine" },
      "tenth profiles show P.profile --json > P.json\ntenth verify A B --corpus text.jsonl --json > AB.json",
    ),
  );
  const problems = h("div", { role: "alert" });
  const shown = h("div", { class: "reports" });
  const element = h(
    "section",
    { class: "view panel", tLabel: "tab.reports" },
    h("div", { class: "view-head" }, h("h1", { t: "tab.reports" })),
    drop,
    problems,
    shown,
  );
  let opened = []; // {name, make, data}

  input.addEventListener("change", () => {
    open([...input.files]);
    input.value = "";
  });
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    element.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragenter" || name === "dragover");
      if (name === "drop") open([...event.dataTransfer.files]);
    });
  }

  async function open(files) {
    problems.replaceChildren();
    for (const file of files) {
      try {
        opened = [await read(file), ...opened.filter(({ name }) => name !== file.name)];
      } catch (error) {
        problems.append(h("p", { class: "bad-words" }, `${file.name}: ${error.message}`));
      }
    }
    draw();
  }

  function draw() {
    shown.replaceChildren(...opened.map(one));
    drop.classList.toggle("small", opened.length > 0);
  }

  function one(report) {
    const close = iconButton("close", ["reports.close", { name: report.name }], () => {
      opened = opened.filter((other) => other !== report);
      draw();
    });
    return h(
      "article",
      { class: "report" },
      h("div", { class: "report-head" }, h("h2", {}, report.name), close),
      report.make(report.data),
    );
  }

  onLanguage(draw);
  return { element, shown: () => {}, hidden: () => {}, keys: {} };
}

/** A file's report; Error in one line for what is none. Its forms are drawn once, so that what is broken shows here. */
async function read(file) {
  if (file.size > LARGEST) throw new Error(t("reports.large"));
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    throw new Error(t("reports.no_json"));
  }
  const [, make] = KINDS.find(([is]) => is(data)) ?? [];
  if (make === undefined) throw new Error(t("reports.unknown"));
  try {
    make(data);
  } catch {
    throw new Error(t("reports.broken"));
  }
  return { name: file.name, make, data };
}
