// Pictures of pairs of experts and of their outputs, the controls, and the drawing of all.
function selector(controls, text, names, value, change) {
  const label = element(controls, "label", text + " "), select = element(label, "select");
  names.forEach(([key, name]) => { element(select, "option", name, { value: key }).selected = key === value; });
  select.addEventListener("change", () => change(Number(select.value)));
  return select;
}

function drawGraph() {
  const { place, legend, label } = picture("graph");
  const edges = data.pairs.edges && data.pairs.edges[state.row];
  if (!edges) return why(place, data.pairs.why || "No pairs of this layer are in the page.");
  const order = data.matrices[0].orders[data.matrices[0].rows.indexOf(state.row)];
  const size = Math.min(place.clientWidth, 640), middle = size / 2, radius = middle - 38, edge = theme() === "dark" ? "#f59e3d" : "#c25700";
  const svg = drawn(place, "svg", { width: size, height: size, viewBox: `0 0 $${size} $${size}`, role: "img", "aria-label": `$${label}, layer $${layerName(state.row)}` });
  const angle = {}, at = (expert, r) => [middle + r * Math.cos(angle[expert]), middle + r * Math.sin(angle[expert])];
  order.forEach((expert, rank) => { angle[expert] = (2 * Math.PI * (rank + 0.5)) / E - Math.PI / 2; });
  const most = edges.length ? Math.log(edges[0][2]) : 1, found = [];
  for (const [i, j, lift, tokens] of [...edges].reverse()) {
    const [a, b] = [at(i, radius), at(j, radius)], near = Math.abs(Math.sin((angle[i] - angle[j]) / 2));
    const [cx, cy] = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2].map((v) => v + (middle - v) * (0.35 + 0.45 * near)), t = Math.log(lift) / most;
    const path = drawn(svg, "path", { d: `M$${a}Q$${cx},$${cy} $${b}`, fill: "none", stroke: edge, "stroke-width": 0.6 + 3.4 * t, "stroke-opacity": 0.25 + 0.6 * t });
    found.push([path, i, j]);
    listen(path, () => `Experts $${i} and $${j}, layer $${layerName(state.row)}\n$${number(lift)} × as often as loads explain\n$${number(tokens)} tokens chose both`);
  }
  const step = every(E, (2 * Math.PI * radius) / E, 13);
  order.forEach((expert, rank) => {
    const [x, y] = at(expert, radius), load = loads[state.row][expert] ?? 0, served = domains ? domains.servedBy(state.row, expert) : -1;
    const most = Math.min(9, (Math.PI * radius) / E);
    const disc = drawn(svg, "circle", { cx: x, cy: y, r: Math.max(2, Math.min(most, most * 0.6 * Math.sqrt(load))), fill: served < 0 ? css("--soft") : domainColour(served), stroke: css("--page") });
    listen(disc, () => loadWords(state.row, expert) + (served < 0 ? "" : `\nserves $${domains.names[served]}`));
    const light = (on) => found.forEach(([path, i, j]) => path.classList.toggle("dim", on && i !== expert && j !== expert));
    disc.addEventListener("pointerenter", () => light(true));
    disc.addEventListener("pointerleave", () => light(false));
    if (rank % step) return;
    const turn = (angle[expert] * 180) / Math.PI, flip = Math.cos(angle[expert]) < 0, [tx, ty] = at(expert, radius + 13);
    drawn(svg, "text", { x: tx, y: ty, "text-anchor": flip ? "end" : "start", "dominant-baseline": "central", transform: `rotate($${E <= 24 ? 0 : flip ? turn + 180 : turn} $${tx} $${ty})` }, expert);
  });
  if (!edges.length) why(place, "No pair of experts of this layer comes together clearly more often than loads explain.");
  else { lineKey(legend, `$${number(edges[edges.length - 1][2])} ×`, edge, 1); lineKey(legend, `$${number(edges[0][2])} × as often as loads explain`, edge, 4); }
  if (domains) domainKeys(legend);
  key(legend, domains ? "serves no domain above others" : "expert", { background: css("--soft"), width: "12px", borderRadius: "6px" });
}

function unpacked(matrix, row) {
  const place = matrix.rows.indexOf(row), cells = (E * (E - 1)) / 2;
  if (place < 0) return null;
  const values = new Int8Array(bytes(matrix.values).buffer).subarray(place * cells, (place + 1) * cells);
  const value = (i, j) => {
    if (i === j) return null;
    const [a, b] = i < j ? [i, j] : [j, i], raw = values[a * E - (a * (a + 1)) / 2 + b - a - 1];
    return raw === $unknown ? null : matrix.scale === "ratio" ? raw / 32 : raw / 127;
  };
  return { order: matrix.orders[place], value };
}

function drawMatrix() {
  const { place, legend, label } = picture("matrix");
  const matrix = data.matrices[state.matrix], found = matrix && unpacked(matrix, state.row);
  if (!found) return why(place, matrix ? "This layer's matrix is not in the page." : data.pairs.why);
  const { order, value } = found, ratio = matrix.scale === "ratio";
  const box = element(place, "div");
  box.style.maxWidth = "640px";
  heat(box, {
    rows: E, cols: E, square: true, label: `$${label}: $${matrix.name}, layer $${layerName(state.row)}`, axis: "experts, alike side by side", rowName: (r) => String(order[r]), colName: (c) => String(order[c]),
    colour: (r, c) => { const v = value(order[r], order[c]); return v === null ? css("--line") : ratio ? diverging(v, data.liftOctaves) : ramp(VIRIDIS, v); },
    words: (r, c) => {
      const [i, j] = [order[r], order[c]], v = value(i, j);
      if (i === j) return loadWords(state.row, i);
      return `Experts $${i} and $${j}, layer $${layerName(state.row)}\n$${v === null ? "too few to say" : ratio ? number(v <= -127 / 32 ? 0 : 2 ** v) + " × as often as loads explain" : matrix.name + " " + number(v)}`;
    },
  });
  if (ratio) bar(legend, DIVERGING[theme()], ["¼ ×", "½", "1", "2", "4 ×"]);
  else bar(legend, VIRIDIS, ["0", matrix.name, "1"]);
  key(legend, "unknown, or the expert itself", { background: css("--line"), width: "12px" });
  element(legend, "span", matrix.says);
}

function drawOutputs() {
  for (const [part, noun] of [["norms", "mean norm"], ["saliency", "mean saliency"], ["peaks", "peak"]]) {
    if (!document.getElementById(part)) continue;
    const { place, legend, label } = picture(part);
    if (!data.outputs) { why(place, "Not drawn: the profile was made without measuring outputs."); continue; }
    const { range: [low, high], values } = data.outputs[part];
    const supers = new Set(part === "peaks" ? data.outputs.supers.map(([r, c]) => r * E + c) : []);
    heat(place, {
      rows: L, cols: E, label, axis: "expert →  (rows: layers)", rowName: layerName, colName: String,
      colour: (r, c) => (values[r][c] === null ? css("--line") : ramp(VIRIDIS, values[r][c] > 0 ? Math.log(values[r][c] / low) / Math.log(high / low) : 0)),
      mark: (r, c) => (supers.has(r * E + c) ? "ring" : null),
      words: (r, c) => loadWords(r, c) + `\n$${noun} $${number(values[r][c])}` + (supers.has(r * E + c) ? "\nsuper expert" : ""),
    });
    bar(legend, VIRIDIS, [low, Math.sqrt(low * high), high].map((v) => number(v, 2)));
    key(legend, "no work measured", { background: css("--line"), width: "12px" });
    if (supers.size) key(legend, "super expert", { width: "12px", borderRadius: "6px", border: `2px solid $${css("--ink")}` });
  }
}

function controls() {
  const loadsBox = picture("loads").controls;
  const buttons = [["by expert id", false], ["by load", true]].map(([text, byLoad]) => {
    const button = element(loadsBox, "button", text, { type: "button", "aria-pressed": String(byLoad === state.byLoad) });
    button.addEventListener("click", () => {
      state.byLoad = byLoad;
      buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
      drawLoads();
    });
    return button;
  });
  const rows = [...new Set(data.matrices.flatMap((matrix) => matrix.rows))].sort((a, b) => a - b);
  if (!rows.length) return;
  if (!rows.includes(state.row)) state.row = rows[0];
  const selects = ["graph", "matrix"].map((id) => selector(picture(id).controls, "Layer", rows.map((row) => [row, layerName(row)]), state.row, (row) => {
    state.row = row;
    selects.forEach((select) => { select.value = String(row); });
    drawGraph(); drawMatrix();
  }));
  if (data.matrices.length > 1) {
    selector(picture("matrix").controls, "Matrix", data.matrices.map((matrix, at) => [at, matrix.name]), 0, (at) => { state.matrix = at; drawMatrix(); });
  }
}

function drawAll() {
  for (const draw of [drawLoads, drawCurves, drawLayers, drawStrength, drawServed, drawTops, drawGraph, drawMatrix, drawOutputs]) draw();
}
let wide = document.body.clientWidth;
addEventListener("resize", () => { if (document.body.clientWidth !== wide) { wide = document.body.clientWidth; drawAll(); } });
darkness.addEventListener("change", drawAll);
controls();
drawAll();
