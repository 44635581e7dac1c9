// Who works: the live map of experts, what the layer under the cursor does, how far all of it is from the stored
// profile.
import { LayerBars } from "./bars.js";
import { h, say, segmented } from "./dom.js";
import { feed } from "./feed.js";
import { number, onLanguage, percent, span, t } from "./i18n.js";
import { HeatMap, loadsOf, mapLegend } from "./map.js";

const FADE = 0.75; // what a tick leaves of those before it: "now" is the last two seconds or so

export function expertsView() {
  let mode = "now";
  let data = null;
  let fading = null; // counts of the last ticks, L x E, and of their tokens
  let still = 0; // ticks without a token
  let leave = null;
  const map = new HeatMap((row, expert, by) => look(row, expert, by));
  const bars = new LayerBars();
  const readout = h("p", { class: "readout" });
  const legend = mapLegend();
  const spoken = h("p", { class: "offstage", "aria-live": "polite" });
  const facts = h("dl", { class: "facts" });
  const layerTitle = h("h2", {});
  const drift = h("div", { class: "card drift" });
  const stateLine = h("p", { class: "feed-state" });
  const modes = segmented(
    "map.mode",
    [
      ["now", "map.now"],
      ["recent", "map.recent"],
      ["change", "map.change"],
    ],
    mode,
    setMode,
  );
  const problem = h("p", { class: "notice" });
  const content = h(
    "div",
    { class: "experts-grid" },
    h("div", { class: "map-side" }, readout, map.element),
    h("div", { class: "detail-side" }, h("div", { class: "card" }, layerTitle, bars.element, facts), drift),
  );
  const head = h("div", { class: "view-head" }, h("h1", { t: "tab.experts" }), modes, legend, stateLine);
  const element = h("section", { class: "view panel", tLabel: "tab.experts" }, head, problem, content, spoken);

  function setMode(next) {
    mode = next;
    modes.set(mode);
    say(legend.firstElementChild, "text", mode === "change" ? "map.scale_change" : "map.scale");
    draw();
  }

  function tick(next) {
    data = next;
    const { experts } = data;
    if (experts) {
      if (fading?.counts.length !== experts.now.counts.length)
        fading = { counts: new Float32Array(experts.now.counts.length), tokens: 0 };
      still = experts.now.tokens > 0 ? 0 : still + 1;
      if (still === 0) {
        fading.tokens = fading.tokens * FADE + experts.now.tokens;
        experts.now.counts.forEach((count, at) => (fading.counts[at] = fading.counts[at] * FADE + count));
      }
    }
    draw();
  }

  function draw() {
    const experts = data?.experts ?? null;
    content.hidden = experts === null;
    problem.hidden = experts !== null;
    if (experts === null) {
      if (data !== null) problem.textContent = data.why ?? t("map.none");
      return;
    }
    map.show({
      ...experts,
      drift: experts.drift?.by_layer,
      loads: shownLoads(),
      crossed: mode === "recent",
      faint: mode === "now" && still > 3,
    });
    drawDrift(experts.drift);
    const { row, expert } = map.cursor ?? { row: 0, expert: 0 };
    look(row, expert, null);
    if (feed.state === "live")
      say(stateLine, "text", [
        "map.window",
        { tokens: number(experts.recent.tokens), time: span(experts.recent.seconds) },
      ]);
  }

  function shownLoads() {
    const { experts } = data;
    const now = loadsOf(fading.counts, experts.experts);
    if (mode === "now") return now;
    const recent = loadsOf(experts.recent.counts, experts.experts);
    const few = 0.25; // few tokens are no news
    return mode === "recent" ? recent : now.map((load, at) => (load + few) / (recent[at] + few));
  }

  function look(row, expert, by) {
    const { experts } = data;
    const at = row * experts.experts + expert;
    const now = loadsOf(fading.counts, experts.experts);
    const recent = loadsOf(experts.recent.counts, experts.experts);
    const times = (load) => (Number.isNaN(load) ? "–" : `${number(load, 2, 2)}×`);
    const values = {
      layer: experts.layers[row],
      expert,
      now: times(now[at]),
      recent: times(recent[at]),
      share: percent(recent[at] / experts.experts, 2),
      count: number(experts.recent.counts[at]),
    };
    if (Number.isNaN(recent[at])) values.share = "–";
    say(readout, "text", ["map.readout", values]);
    if (by === "keys") spoken.textContent = t("map.readout", values);
    const loads = shownLoads();
    bars.show(loads.slice(row * experts.experts, (row + 1) * experts.experts), expert);
    say(layerTitle, "text", ["map.layer", { layer: experts.layers[row] }]);
    drawFacts(row, recent);
  }

  function drawFacts(row, recent) {
    const { experts } = data;
    const loads = Array.from(recent.slice(row * experts.experts, (row + 1) * experts.experts));
    const busiest = loads.indexOf(Math.max(...loads));
    const known = experts.entropy[row] !== null && experts.entropy[row] !== undefined;
    const rows = [
      ["map.entropy_long", known ? number(experts.entropy[row], 3, 3) : "–"],
      ["map.balance_long", known ? `${number(experts.balance[row], 2, 2)}×` : "–"],
      ["map.busiest", busiest < 0 ? "–" : String(busiest)],
      ["map.dead_long", t("map.of", { some: number(experts.dead[row]), all: number(experts.experts) })],
    ];
    const far = experts.drift?.by_layer?.[row];
    if (far !== undefined && far !== null) rows.push(["map.drift_long", `${number(far, 4)} bit`]);
    facts.replaceChildren(...rows.map(([words, value]) => h("div", {}, h("dt", { t: words }), h("dd", {}, value))));
  }

  function drawDrift(found) {
    drift.classList.toggle("alarm", found?.alarm === true);
    if (!found) {
      drift.replaceChildren(h("h2", { t: "drift.title" }), h("p", { class: "fine", t: "drift.none" }));
      return;
    }
    const words = found.judged === false ? "drift.unjudged" : found.alarm ? "drift.alarm" : "drift.calm";
    const meter = h("meter", {
      min: "0",
      max: String(2 * found.threshold),
      high: String(found.threshold),
      tLabel: "drift.title",
    });
    meter.value = Math.max(0, found.bits ?? 0);
    drift.replaceChildren(
      h("h2", { t: "drift.title" }),
      h("p", { class: "big" }, found.bits === null ? "–" : `${number(found.bits, 3, 3)} bit`),
      meter,
      h("p", { t: [words, { threshold: number(found.threshold, 3), layer: found.layer ?? "–" }] }),
    );
  }

  function state(name, why) {
    const words = { idle: "feed.idle", connecting: "feed.connecting", lost: "feed.lost", off: "feed.off" }[name];
    stateLine.dataset.state = name;
    if (words) say(stateLine, "text", words);
    if (data === null) {
      content.hidden = true;
      problem.hidden = false;
      say(problem, "text", name === "off" ? "feed.off_long" : (words ?? "feed.connecting"));
      if (why) problem.textContent = why;
    }
  }

  onLanguage(() => data !== null && draw());
  return {
    element,
    shown: () => (leave = feed.watch({ tick, state })),
    hidden: () => leave?.(),
    keys: { m: () => setMode({ now: "recent", recent: "change", change: "now" }[mode]) },
  };
}
