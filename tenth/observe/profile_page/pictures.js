// The pictures, in the order of the page. Rows are places of layers; L and E in words are ids.
const E = data.experts, L = data.layers.length;
const layerName = (row) => String(data.layers[row]);
const sums = data.counts.map((row) => row.reduce((a, b) => a + b, 0));
const loads = data.counts.map((row, r) => row.map((count) => (sums[r] ? (count * E) / sums[r] : null)));
const domains = data.domains.names ? unpackDomains(data.domains) : null;
const state = { byLoad: false, row: data.pairs.row ?? 0, matrix: 0 };

function unpackDomains(raw) {
  const D = raw.names.length, shares = new Uint16Array(bytes(raw.shares).buffer), served = new Int8Array(bytes(raw.served).buffer);
  const at = (row, expert) => Array.from(shares.slice((row * E + expert) * D, (row * E + expert + 1) * D), (s) => s / 65535);
  const part = (row, expert) => { const all = at(row, expert), sum = all.reduce((a, b) => a + b, 0); return all.map((s) => (sum ? s / sum : null)); };
  return { ...raw, at, part, servedBy: (row, expert) => served[row * E + expert] };
}

function picture(id) {
  const section = document.getElementById(id);
  const found = { place: section.querySelector(".picture"), legend: section.querySelector(".legend"), controls: section.querySelector(".controls"), label: section.querySelector("h2").textContent };
  found.place.replaceChildren(); found.legend.replaceChildren();
  return found;
}
const why = (place, text) => element(place, "p", text, { class: "why" });

function loadWords(row, expert) {
  const count = data.counts[row][expert];
  return `Layer $${layerName(row)}, expert $${expert}\n$${number(count)} assignments, $${sums[row] ? percent(count / sums[row]) : "no work"} of the layer\n$${loads[row][expert] === null ? "" : number(loads[row][expert]) + " × mean"}`;
}

function drawLoads() {
  const { place, legend, label } = picture("loads");
  const order = data.counts.map((row) => {
    const ids = row.map((_, expert) => expert);
    return state.byLoad ? ids.sort((a, b) => row[b] - row[a] || a - b) : ids;
  });
  heat(place, {
    rows: L, cols: E, label, axis: state.byLoad ? "rank of expert by load →  (rows: layers)" : "expert →  (rows: layers)",
    colour: (r, c) => (loads[r][order[r][c]] === null ? css("--line") : diverging(Math.log2(loads[r][order[r][c]]), data.octaves)),
    mark: (r, c) => (data.counts[r][order[r][c]] === 0 ? "dead" : null),
    rowName: layerName, colName: (c) => String(state.byLoad ? c + 1 : c), words: (r, c) => loadWords(r, order[r][c]),
  });
  bar(legend, DIVERGING[theme()], ["⅛ ×", "¼", "½", "mean", "2", "4", "8 ×"]);
  key(legend, "dead: no tokens", { background: css("--ink"), width: "12px" });
}

function drawCurves() {
  const { place, legend, label } = picture("curves");
  const sorted = data.counts.map((row, r) => (sums[r] ? row.map((count) => count / sums[r]).sort((a, b) => b - a) : null)).filter(Boolean);
  if (!sorted.length) return why(place, "Not drawn: no expert had anything to do.");
  const mean = sorted[0].map((_, rank) => sorted.reduce((sum, row) => sum + row[rank], 0) / sorted.length);
  const points = (row) => row.map((share, rank) => [rank + 1, share]);
  const thin = css("--soft"), bold = css("--accent"), ideal = css("--ink");
  lines(place, {
    label, x: [1, E], y: [0, Math.max(...sorted.map((row) => row[0])) * 1.05], xName: String, yName: percent, axis: "rank of expert, busiest first",
    series: [
      ...sorted.map((row) => ({ points: points(row), colour: thin, width: 1, opacity: L > 12 ? 0.3 : 0.5 })),
      { points: [[1, 1 / E], [E, 1 / E]], colour: ideal, width: 1.5, dash: "6 4" },
      { points: points(mean), colour: bold, width: 3 },
    ],
    words: (rank) => `Rank $${rank}\nmean $${percent(mean[rank - 1])}\nfrom $${percent(Math.min(...sorted.map((r) => r[rank - 1])))} to $${percent(Math.max(...sorted.map((r) => r[rank - 1])))}`,
  });
  lineKey(legend, "one layer", thin, 1); lineKey(legend, "mean of layers", bold, 3); lineKey(legend, `ideal, 1 / $${E}`, ideal, 1.5, "dashed");
}

function drawLayers() {
  const { place, legend, label } = picture("layers");
  const grid = element(place, "div", "", { class: "multiples" });
  const cells = Object.entries(data.byLayer).map(([name, values]) => {
    const cell = element(grid, "div");
    element(cell, "h3", name);
    return [name, values, cell];
  });
  for (const [name, values, cell] of cells) {
    const known = values.filter((value) => value !== null);
    if (!known.length) { why(cell, "Unknown: nothing was counted."); continue; }
    const top = name.endsWith("entropy") ? 1 : Math.max(...known) * 1.08 || 1;
    lines(cell, {
      label: `$${label}: $${name}`, height: 190, x: [0, Math.max(L - 1, 1)], y: [0, top], xName: (row) => (row < L ? layerName(row) : ""), axis: "layer",
      series: [{ points: values.map((value, row) => [row, value]), colour: css("--accent"), dots: L <= 64 }],
      words: (row) => (row < L ? `Layer $${layerName(row)}\n$${name} $${number(values[row])}` : ""),
    });
  }
  lineKey(legend, "one value a layer", css("--accent"), 2);
}

function drawStrength() {
  const { place, legend, label } = picture("strength");
  if (!domains) return why(place, data.domains.why);
  const rows = domains.strength;
  lines(place, {
    label, height: 240, x: [0, Math.max(L - 1, 1)], y: [0, Math.max(...rows.map((r) => Math.max(r[0], r[2]))) * 1.08 || 1], xName: (row) => (row < L ? layerName(row) : ""), axis: "layer",
    band: rows.map((r, row) => [row, 0, r[2]]),
    series: [
      { points: rows.map((r, row) => [row, r[1]]), colour: css("--soft"), width: 1.5, dash: "4 3" },
      { points: rows.map((r, row) => [row, r[0]]), colour: css("--accent"), dots: L <= 64 },
    ],
    words: (row) => (row < L ? `Layer $${layerName(row)}\nphi² $${number(rows[row][0])}, chance $${number(rows[row][1])} (95 %: $${number(rows[row][2])})\np = $${number(rows[row][3])}` : ""),
  });
  lineKey(legend, "phi² of the layer", css("--accent"), 2); lineKey(legend, "mean of chance", css("--soft"), 1.5, "dashed");
  key(legend, "95 % of chance", { background: css("--band"), opacity: 0.6 });
}

function domainWords(row, expert) {
  const shares = domains.at(row, expert), parts = domains.part(row, expert);
  return `Layer $${layerName(row)}, expert $${expert}\n` + domains.names.slice(0, 12).map((name, d) => `$${name}: $${percent(shares[d])} of its tokens, part $${parts[d] === null ? "unknown" : percent(parts[d])}`).join("\n");
}

function domainKeys(legend) {
  domains.names.slice(0, DOMAINS.length).forEach((name, d) => key(legend, name, { background: domainColour(d), width: "12px" }));
  if (domains.names.length > DOMAINS.length) key(legend, "another domain", { background: domainColour(99), width: "12px" });
}

function drawServed() {
  const { place, legend, label } = picture("served");
  if (!domains) return why(place, data.domains.why);
  const D = domains.names.length, ground = theme() === "dark" ? "#20242a" : "#f0f1f3", least = theme() === "dark" ? 0.45 : 0.25;
  heat(place, {
    rows: L, cols: E, label, axis: "expert →  (rows: layers)", rowName: layerName, colName: String, words: domainWords,
    mark: (r, c) => (data.counts[r][c] === 0 ? "dead" : null),
    colour: (r, c) => {
      const d = domains.servedBy(r, c);
      return d < 0 ? ground : mix(ground, domainColour(d), least + (1 - least) * Math.min(1, (domains.part(r, c)[d] - 1 / D) / (1 - 1 / D)));
    },
  });
  domainKeys(legend);
  key(legend, "no preference", { background: ground, width: "12px", outline: `1px solid $${css("--line")}` });
  key(legend, "dead", { background: css("--ink"), width: "12px" });
}

function drawTops() {
  const { place, legend, label } = picture("tops");
  if (!domains) return why(place, data.domains.why);
  const tops = domains.tops;
  if (!tops.length) return why(place, "No expert prefers a domain clearly and beyond chance.");
  const name = (d) => (domains.names[d].length > 12 ? domains.names[d].slice(0, 11) + "…" : domains.names[d]);
  const part = (r, c) => domains.part(tops[c][0], tops[c][1])[r] ?? 0;
  const made = heat(place, {
    rows: domains.names.length, cols: tops.length, label, left: 92, top: 62, height: 30, least: 26, most: 34, upright: true, rowName: name,
    colour: (r, c) => ramp(VIRIDIS, part(r, c)), text: (r, c) => String(Math.round(100 * part(r, c))),
    words: (r, c) => domainWords(tops[c][0], tops[c][1]) + `\nchance for $${domains.names[r]}: $${percent(tops[c][3][r])} to $${percent(tops[c][4][r])}`,
  });
  upright(made, tops);
  bar(legend, VIRIDIS, ["0 %", "part of its work", "100 %"]);
  domainKeys(legend);
}

function upright({ pen, left, top, across }, tops) {
  tops.forEach(([row, expert, domain], c) => {
    pen.fillStyle = domainColour(domain);
    pen.fillRect(left + c * across, top - 6, across - 1, 4);
    pen.save();
    pen.translate(left + (c + 0.5) * across, top - 11); pen.rotate(-Math.PI / 2);
    pen.fillStyle = css("--ink"); pen.textAlign = "left"; pen.textBaseline = "middle";
    pen.font = "11px " + getComputedStyle(document.body).fontFamily;
    pen.fillText(`L$${layerName(row)} E$${expert}`, 0, 0);
    pen.restore();
  });
}
