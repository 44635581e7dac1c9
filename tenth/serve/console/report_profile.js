// A routing profile (`tenth profiles show --json`) as a map and a table, and how far two are apart (`compare --json`).
import { LayerBars } from "./bars.js";
import { h, say } from "./dom.js";
import { number, short, t } from "./i18n.js";
import { HeatMap, loadsOf, mapLegend } from "./map.js";
import { facts, table } from "./report_parts.js";

const isNumber = (value) => typeof value === "number";

/** Whether data are a profile, of which every layer counts the same experts. */
export function isProfile(data) {
  const experts = data?.model?.experts;
  const layers = data?.layers;
  if (!Number.isInteger(experts) || experts < 1 || !Array.isArray(layers) || layers.length === 0) return false;
  return layers.every(
    (layer) =>
      Array.isArray(layer?.counts) &&
      layer.counts.length === experts &&
      layer.counts.every((count) => isNumber(count) && count >= 0),
  );
}

export function isComparison(data) {
  return (
    isNumber(data?.excess) &&
    Array.isArray(data.layers) &&
    data.layers.length > 0 &&
    data.layers.every((layer) => layer !== null && "divergence" in layer && "chance" in layer)
  );
}

/** The map of a profile, its layers' figures, and what stands at its head. */
export function profileReport(data) {
  const { model, layers } = data;
  const experts = model.experts;
  const loads = loadsOf(
    layers.flatMap(({ counts }) => counts),
    experts,
  );
  const readout = h("p", { class: "readout" });
  const spoken = h("p", { class: "offstage", "aria-live": "polite" });
  const bars = new LayerBars();
  const title = h("h3", {});
  const map = new HeatMap((row, expert, by) => look(row, expert, by));
  map.show({
    layers: layers.map(({ layer }) => layer),
    experts,
    loads,
    entropy: layers.map((layer) => layer.load_entropy),
    balance: layers.map((layer) => (isNumber(layer.max_vio) ? layer.max_vio + 1 : null)),
    dead: layers.map((layer) => layer.dead),
    crossed: true,
    faint: false,
  });
  function look(row, expert, by) {
    const load = loads[row * experts + expert];
    const values = {
      layer: layers[row].layer,
      expert,
      load: Number.isNaN(load) ? "–" : `${number(load, 2, 2)}×`,
      count: number(layers[row].counts[expert]),
    };
    say(readout, "text", ["reports.readout", values]);
    if (by === "keys") spoken.textContent = t("reports.readout", values);
    say(title, "text", ["map.layer", { layer: layers[row].layer }]);
    bars.show(loads.slice(row * experts, (row + 1) * experts), expert);
  }
  look(0, 0, null);
  const dead = layers.reduce((sum, layer) => sum + (layer.dead ?? 0), 0);
  const domains = Object.entries(data.domains ?? {}).map(([name, tokens]) => `${name} ${number(tokens)}`);
  const head = facts([
    ["reports.model", String(model.name ?? "–")],
    ["reports.tokens", number(data.tokens ?? 0)],
    ["reports.domains", domains.join(", ") || "–"],
    ["reports.experts", t("reports.experts_of", { layers: layers.length, experts, top_k: model.top_k ?? "–" })],
    ["reports.dead", t("map.of", { some: number(dead), all: number(layers.length * experts) })],
  ]);
  const heads = [
    "reports.layer",
    "reports.max_vio",
    "reports.load_entropy",
    "reports.router_entropy",
    "reports.dead",
    "reports.most",
    "reports.norm",
    "reports.extreme",
  ];
  const rows = layers.map((layer) => [
    layer.layer,
    ...["max_vio", "load_entropy", "router_entropy", "dead", "most", "norm", "extreme"].map((name) =>
      shownValue(layer[name]),
    ),
  ]);
  return h(
    "div",
    {},
    head,
    mapLegend(),
    readout,
    map.element,
    title,
    bars.element,
    spoken,
    table("reports.layers", heads, rows),
  );
}

/** How far the second profile's work is from the first's. */
export function comparisonReport(data) {
  const head = facts([
    ["reports.excess", `${short(data.excess)} bit`],
    ["reports.tokens", number(data.tokens ?? 0)],
  ]);
  const most = Math.max(...data.layers.map(({ divergence }) => divergence ?? 0), 1e-9);
  const rows = data.layers.map((layer) => [
    layer.layer,
    { bar: (layer.divergence ?? 0) / most, text: shownValue(layer.divergence) },
    shownValue(layer.chance),
    shownValue(layer.dead),
    shownValue(layer.router_entropy),
  ]);
  return h(
    "div",
    {},
    head,
    table(
      "reports.layers",
      ["reports.layer", "reports.divergence", "reports.chance", "reports.more_dead", "reports.router_entropy"],
      rows,
    ),
  );
}

const shownValue = (value) => (isNumber(value) ? (Number.isInteger(value) ? number(value) : short(value)) : "–");
