// The heat map: layers down, experts across, figures of each layer beside it. L layers, E experts.
import { ink, OCTAVES, onTheme, ratioColour, sharp, theme } from "./colours.js";
import { h } from "./dom.js";
import { number, onLanguage, t } from "./i18n.js";

const HEAD = 22;
const GUTTER = 34;
const COLUMN = 76;
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

/** What a figure beside the map is, by layer: its column's head, its text and how long its bar is (0 to 1). */
const COLUMNS = [
  {
    words: "map.entropy",
    of: (data, row) => data.entropy[row],
    text: (value) => number(value, 3, 3),
    bar: (value) => value,
  },
  {
    words: "map.balance",
    of: (data, row) => data.balance[row],
    text: (value) => `${number(value, 1, 1)}×`,
    bar: (value) => Math.log2(Math.max(1, value)) / 4,
  },
  {
    words: "map.dead",
    of: (data, row) => data.dead[row],
    text: (value) => number(value),
    bar: (value, data) => value / data.experts,
    warns: true,
  },
  {
    words: "map.drift",
    of: (data, row) => data.drift?.[row],
    text: (value) => number(value, 3, 3),
    bar: (value) => value / 0.25,
  },
];

let maps = 0;

export class HeatMap {
  /** `moved(row, expert, by)` hears where the cursor is; `by` is "keys", "pointer" or null where it has left. */
  constructor(moved) {
    this.moved = moved;
    this.data = null;
    this.cursor = null;
    const hint = `map-keys-${(maps += 1)}`;
    this.canvas = h("canvas", {
      class: "map",
      tabIndex: 0,
      role: "application",
      tLabel: "map.label",
      "aria-describedby": hint,
    });
    this.element = h("div", { class: "map-box" }, this.canvas, h("p", { class: "fine", id: hint, t: "map.keys" }));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("focus", () => this.cursor === null && this.data !== null && this.go(0, 0, "keys"));
    new ResizeObserver(() => this.draw()).observe(this.element);
    onTheme(() => this.draw());
    onLanguage(() => this.draw());
  }

  /**
   * What is drawn: {layers, experts, loads, dead, entropy, balance, drift, crossed, faint}. Loads (L x E) are over the
   * layer's mean, NaN where it is not known; `crossed` is whether experts without work are crossed.
   */
  show(data) {
    this.data = data;
    if (this.cursor !== null) {
      this.cursor.row = Math.min(this.cursor.row, data.layers.length - 1);
      this.cursor.expert = Math.min(this.cursor.expert, data.experts - 1);
    }
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  measure() {
    const { layers, experts, drift } = this.data;
    const width = this.element.clientWidth;
    const wanted = drift ? 4 : 3;
    const room = width - GUTTER;
    const columns = room >= 900 ? wanted : room >= 620 ? Math.min(2, wanted) : 0;
    const across = room - columns * COLUMN - (columns ? 10 : 0);
    const cell = Math.min(28, across / experts);
    const free = Math.max(280, window.innerHeight - (width < 700 ? 420 : 210));
    const tall = Math.max(width < 600 ? 7 : 9, Math.min(22, free / layers.length));
    return {
      width,
      columns,
      cell,
      tall,
      height: HEAD + Math.ceil(tall * layers.length) + 2,
      bars: GUTTER + cell * experts + 14,
    };
  }

  draw() {
    if (this.data === null || this.element.clientWidth === 0) return;
    const size = (this.size = this.measure());
    const context = sharp(this.canvas, size.width, size.height);
    context.font = FONT;
    context.textBaseline = "middle";
    this.drawCells(context, size);
    this.drawLabels(context, size);
    for (let column = 0; column < size.columns; column += 1) this.drawColumn(context, size, column);
    this.drawCursor(context, size);
  }

  drawCells(context, { cell, tall }) {
    const { layers, experts, loads, crossed, faint } = this.data;
    const name = theme();
    const gap = cell >= 5 ? 1 : cell >= 3 ? 0.5 : 0;
    const unknown = ink("--card");
    context.globalAlpha = faint ? 0.4 : 1;
    for (let row = 0; row < layers.length; row += 1) {
      for (let expert = 0; expert < experts; expert += 1) {
        const load = loads[row * experts + expert];
        context.fillStyle = Number.isNaN(load) ? unknown : ratioColour(load, name);
        context.fillRect(GUTTER + expert * cell, HEAD + row * tall, cell - gap, tall - 1);
      }
    }
    context.globalAlpha = 1;
    if (!crossed) return;
    context.strokeStyle = name === "dark" ? "#14171b" : "#ffffff";
    context.lineWidth = 1;
    context.beginPath();
    for (let at = 0; at < loads.length; at += 1) {
      if (loads[at] !== 0) continue;
      const [x, y] = [GUTTER + (at % experts) * cell, HEAD + Math.floor(at / experts) * tall];
      context.moveTo(x + 1, y + tall - 2);
      context.lineTo(x + cell - gap - 1, y + 1);
    }
    context.stroke();
  }

  drawLabels(context, { cell, tall }) {
    const { layers, experts } = this.data;
    context.fillStyle = ink("--soft");
    context.textAlign = "right";
    const each = tall >= 13 ? 1 : layers.length > 24 ? 4 : 2;
    for (let row = 0; row < layers.length; row += each)
      context.fillText(layers[row], GUTTER - 7, HEAD + (row + 0.5) * tall);
    context.textAlign = "center";
    const step = [1, 2, 4, 8, 16, 32, 64].find((count) => count * cell >= 26) ?? 128;
    for (let expert = 0; expert < experts; expert += step) context.fillText(expert, GUTTER + (expert + 0.5) * cell, 12);
  }

  drawColumn(context, { bars, tall }, column) {
    const { words, of, text, bar, warns } = COLUMNS[column];
    const x = bars + column * COLUMN;
    const [soft, line, warn, empty] = [ink("--soft"), ink("--bar"), ink("--hot"), ink("--card")];
    context.textAlign = "left";
    context.fillStyle = soft;
    context.fillText(t(words), x, 12, COLUMN - 6);
    const written = tall >= 11;
    const room = written ? 24 : COLUMN - 10;
    for (let row = 0; row < this.data.layers.length; row += 1) {
      const value = of(this.data, row);
      if (value === null || value === undefined) continue;
      const y = HEAD + row * tall;
      const length = Math.max(0, Math.min(1, bar(value, this.data)));
      context.fillStyle = empty;
      context.fillRect(x, y, room, tall - 1);
      context.fillStyle = warns && value > 0 ? warn : line;
      context.fillRect(x, y, room * length, tall - 1);
      if (!written) continue;
      context.fillStyle = soft;
      context.fillText(text(value), x + room + 5, y + tall / 2, COLUMN - room - 10);
    }
  }

  drawCursor(context, { cell, tall }) {
    if (this.cursor === null) return;
    const { row, expert } = this.cursor;
    const [x, y] = [GUTTER + expert * cell, HEAD + row * tall];
    context.strokeStyle = ink("--ink");
    context.lineWidth = 2;
    context.strokeRect(x - 1, y - 1, Math.max(cell, 4) + 1, tall + 1);
    context.fillStyle = ink("--ink");
    context.fillRect(GUTTER - 4, y, 2, tall - 1);
    context.fillRect(x + cell / 2 - 1, HEAD - 4, 2, 3);
  }

  key(event) {
    if (this.data === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const { row, expert } = this.cursor ?? { row: 0, expert: 0 };
    const last = { row: this.data.layers.length - 1, expert: this.data.experts - 1 };
    const page = event.shiftKey ? 8 : 1;
    const places = {
      ArrowLeft: [row, expert - page],
      ArrowRight: [row, expert + page],
      ArrowUp: [row - page, expert],
      ArrowDown: [row + page, expert],
      Home: [row, 0],
      End: [row, last.expert],
      PageUp: [0, expert],
      PageDown: [last.row, expert],
    };
    const place = places[event.key];
    if (place === undefined) return;
    event.preventDefault();
    this.go(Math.max(0, Math.min(last.row, place[0])), Math.max(0, Math.min(last.expert, place[1])), "keys");
  }

  point(event) {
    if (this.data === null || !this.size) return;
    const box = this.canvas.getBoundingClientRect();
    const expert = Math.floor((event.clientX - box.left - GUTTER) / this.size.cell);
    const row = Math.floor((event.clientY - box.top - HEAD) / this.size.tall);
    const inside = row >= 0 && row < this.data.layers.length && expert >= 0;
    if (inside) this.go(row, Math.min(expert, this.data.experts - 1), "pointer");
  }

  go(row, expert, by) {
    if (this.cursor?.row === row && this.cursor?.expert === expert) return;
    this.cursor = { row, expert };
    this.draw();
    this.moved(row, expert, by);
  }
}

/** What the colours mean. */
export function mapLegend() {
  const canvas = h("canvas", { class: "scale", "aria-hidden": "true" });
  const marks = h("div", { class: "scale-marks" }, ...["⅛", "½", "1", "2", "8"].map((mark) => h("span", {}, mark)));
  const draw = () => {
    const context = sharp(canvas, 180, 10);
    for (let x = 0; x < 180; x += 1) {
      context.fillStyle = ratioColour(2 ** ((x / 90 - 1) * OCTAVES), theme());
      context.fillRect(x, 0, 1, 10);
    }
  };
  onTheme(draw);
  draw();
  return h("div", { class: "legend" }, h("span", { t: "map.scale" }), h("div", { class: "scale-box" }, canvas, marks));
}

/** Loads over the mean of their layer, of counts; NaN where a layer has none. */
export function loadsOf(counts, experts) {
  const loads = new Float32Array(counts.length);
  for (let from = 0; from < counts.length; from += experts) {
    let sum = 0;
    for (let at = from; at < from + experts; at += 1) sum += counts[at];
    for (let at = from; at < from + experts; at += 1) loads[at] = sum > 0 ? (counts[at] * experts) / sum : Number.NaN;
  }
  return loads;
}
