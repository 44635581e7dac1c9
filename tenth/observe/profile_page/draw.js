"use strict";
// Heat maps on canvas, lines in SVG, colours, and the words beside the pointer. Text is only ever set as textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const darkness = matchMedia("(prefers-color-scheme: dark)");
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const DIVERGING = { light: $diverging_light, dark: $diverging_dark };
const DOMAINS = $domains;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const theme = () => (darkness.matches ? "dark" : "light");

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function parts(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function mix(one, other, t) {
  const [a, b] = [parts(one), parts(other)];
  return `rgb($${a.map((value, i) => Math.round(value + (b[i] - value) * t)).join(",")})`;
}

function ramp(stops, t) {
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
  return mix(stops[low], stops[low + 1], at - low);
}

const diverging = (octaves, end) => ramp(DIVERGING[theme()], 0.5 + Math.max(-1, Math.min(1, octaves / end)) / 2);
const domainColour = (domain) => (domain >= 0 && domain < DOMAINS.length ? DOMAINS[domain] : "#999999");

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "unknown";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(digits - 1) : String(+value.toPrecision(digits));
}
const percent = (value) => `$${number(100 * value)} %`;

function element(parent, name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function drawn(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

const tip = document.getElementById("tip");
function say(event, text) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
  tip.style.left = `$${Math.max(4, left)}px`;
  tip.style.top = `$${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4))}px`;
}
function listen(target, words) {
  for (const kind of ["pointermove", "pointerdown"]) target.addEventListener(kind, (event) => say(event, words(event)));
  target.addEventListener("pointerleave", (event) => say(event, ""));
}

function every(count, room, least) {
  const steps = [1, 2, 4, 8, 16, 32, 64, 128, 256];
  return steps.find((step) => step * room >= least) || count;
}

function ticks(low, high, about = 4) {
  const rough = (high - low) / about || 1, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * size).find((s) => s >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(+(k * step).toPrecision(12));
  return found;
}

// Cells of rows and cols: at(r, c) is what colour() and words() get; mark() may say "dead" or "ring", text() a short word.
function heat(place, spec) {
  const left = spec.left ?? 34, top = spec.top ?? 8, bottom = spec.upright ? 4 : 38;
  const width = Math.max(place.clientWidth, left + spec.cols * (spec.least ?? 0));
  const across = Math.min((width - left - 8) / spec.cols, spec.most ?? 56);
  const down = spec.square ? across : spec.height ?? Math.min(26, Math.max(8, 420 / spec.rows));
  const canvas = element(place, "canvas", "", { role: "img", "aria-label": spec.label });
  const scale = Math.max(devicePixelRatio || 1, 1), height = top + down * spec.rows + bottom;
  canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
  canvas.style.width = `$${width}px`; canvas.style.height = `$${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const gap = Math.min(across, down) >= 12 ? 1 : 0;
  for (let r = 0; r < spec.rows; r++) {
    for (let c = 0; c < spec.cols; c++) {
      const x = left + c * across, y = top + r * down, mark = spec.mark && spec.mark(r, c);
      pen.fillStyle = mark === "dead" ? css("--ink") : spec.colour(r, c);
      pen.fillRect(x, y, across - gap + (gap ? 0 : 0.4), down - gap + (gap ? 0 : 0.4));
      if (mark === "dead") cross(pen, x, y, across - gap, down - gap);
      if (spec.text) word(pen, spec.text(r, c), x + across / 2, y + down / 2, across, pen.fillStyle);
    }
  }
  if (spec.mark) rings(pen, spec, left, top, across, down);
  pen.font = "12px " + getComputedStyle(document.body).fontFamily;
  pen.fillStyle = css("--soft");
  pen.textBaseline = "middle"; pen.textAlign = "right";
  const rowStep = every(spec.rows, down, 14), colStep = every(spec.cols, across, 26);
  for (let r = 0; r < spec.rows; r += rowStep) pen.fillText(spec.rowName(r), left - 6, top + (r + 0.5) * down);
  pen.textBaseline = "top"; pen.textAlign = "center";
  const under = top + spec.rows * down + 3;
  if (!spec.upright) for (let c = 0; c < spec.cols; c += colStep) pen.fillText(spec.colName(c), left + (c + 0.5) * across, under);
  if (spec.axis) { pen.textAlign = "left"; pen.fillText(spec.axis, left, under + 17); }
  const cell = (event) => {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - left) / across), r = Math.floor((event.clientY - box.top - top) / down);
    return r >= 0 && r < spec.rows && c >= 0 && c < spec.cols ? [r, c] : null;
  };
  listen(canvas, (event) => { const at = cell(event); return at ? spec.words(...at) : ""; });
  return { pen, left, top, across, down, under };
}

function cross(pen, x, y, w, h) {
  if (Math.min(w, h) < 6) return;
  pen.strokeStyle = css("--page"); pen.lineWidth = 1.2;
  const s = Math.min(w, h) * 0.3, cx = x + w / 2, cy = y + h / 2;
  pen.beginPath();
  pen.moveTo(cx - s, cy - s); pen.lineTo(cx + s, cy + s); pen.moveTo(cx + s, cy - s); pen.lineTo(cx - s, cy + s);
  pen.stroke();
}

function word(pen, text, x, y, room, ground) {
  if (!text || room < 18) return;
  pen.font = "11px " + getComputedStyle(document.body).fontFamily;
  const [r, g, b] = ground.startsWith("#") ? parts(ground) : ground.match(/\d+/g).map(Number);
  pen.fillStyle = r * 0.3 + g * 0.59 + b * 0.11 > 140 ? "#14171b" : "#ffffff";
  pen.textAlign = "center"; pen.textBaseline = "middle";
  pen.fillText(text, x, y);
}

function rings(pen, spec, left, top, across, down) {
  for (let r = 0; r < spec.rows; r++) {
    for (let c = 0; c < spec.cols; c++) {
      if (spec.mark(r, c) !== "ring") continue;
      for (const [colour, wide] of [[css("--page"), 5], [css("--ink"), 2]]) {
        pen.strokeStyle = colour; pen.lineWidth = wide;
        pen.beginPath();
        pen.arc(left + (c + 0.5) * across, top + (r + 0.5) * down, Math.max(6, Math.min(across, down) * 0.45), 0, 7);
        pen.stroke();
      }
    }
  }
}

// Lines over x; a band is [x, low, high]. words(x) is said of the nearest whole x.
function lines(place, spec) {
  const width = Math.max(place.clientWidth, 200), height = spec.height ?? 280, left = 44, right = 10, top = 8, bottom = 36;
  const svg = drawn(place, "svg", { width, height, viewBox: `0 0 $${width} $${height}`, role: "img", "aria-label": spec.label });
  const [x0, x1] = spec.x, [y0, y1] = spec.y;
  const X = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (width - left - right);
  const Y = (y) => height - bottom - ((y - y0) / (y1 - y0 || 1)) * (height - top - bottom);
  for (const y of ticks(y0, y1)) {
    drawn(svg, "line", { class: "grid", x1: left, x2: width - right, y1: Y(y), y2: Y(y) });
    drawn(svg, "text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, spec.yName ? spec.yName(y) : number(y));
  }
  const whole = ticks(x0, x1, Math.max(2, Math.floor((width - left) / 70))).filter(Number.isInteger);
  for (const x of whole) drawn(svg, "text", { x: X(x), y: height - bottom + 16, "text-anchor": "middle" }, spec.xName(x));
  drawn(svg, "text", { x: left, y: height - 4 }, spec.axis);
  if (spec.band) {
    const up = spec.band.map(([x, , high]) => `$${X(x)},$${Y(high)}`), back = spec.band.map(([x, low]) => `$${X(x)},$${Y(low)}`).reverse();
    drawn(svg, "polygon", { points: [...up, ...back].join(" "), fill: css("--band"), "fill-opacity": 0.6 });
  }
  for (const one of spec.series) {
    let path = "", pen = "M";
    for (const [x, y] of one.points) {
      if (y === null) { pen = "M"; continue; }
      path += `$${pen}$${X(x).toFixed(1)} $${Y(y).toFixed(1)}`;
      pen = "L";
      if (one.dots) drawn(svg, "circle", { cx: X(x), cy: Y(y), r: 2.5, fill: one.colour });
    }
    const style = { stroke: one.colour, "stroke-width": one.width ?? 2, "stroke-opacity": one.opacity ?? 1, "stroke-dasharray": one.dash ?? "none" };
    drawn(svg, "path", { d: path, fill: "none", "stroke-linejoin": "round", ...style });
  }
  const cursor = drawn(svg, "line", { class: "grid", y1: top, y2: height - bottom, visibility: "hidden" });
  svg.addEventListener("pointerleave", () => cursor.setAttribute("visibility", "hidden"));
  listen(svg, (event) => {
    const at = (event.clientX - svg.getBoundingClientRect().left - left) / (width - left - right);
    const x = Math.max(x0, Math.min(x1, Math.round(x0 + at * (x1 - x0))));
    cursor.setAttribute("x1", X(x)); cursor.setAttribute("x2", X(x)); cursor.setAttribute("visibility", "visible");
    return spec.words(x);
  });
}

function key(legend, text, style) {
  const one = element(legend, "span", "", { class: "key" }), sign = element(one, "i");
  Object.assign(sign.style, { width: "22px", height: "12px", borderRadius: "2px", ...style });
  element(one, "span", text);
}
const lineKey = (legend, text, colour, wide, dash) => key(legend, text, { height: "0", borderTop: `$${wide}px $${dash || "solid"} $${colour}` });

function bar(legend, stops, names) {
  const one = element(legend, "div", "", { class: "bar" });
  element(one, "i").style.background = `linear-gradient(to right, $${stops.join(",")})`;
  const row = element(one, "span");
  for (const name of names) element(row, "span", name);
}
