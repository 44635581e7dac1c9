// A line of the last minutes: where nobody looked there is a gap.
import { ink, onTheme, sharp } from "./colours.js";
import { h } from "./dom.js";

const SPAN_MS = 300_000;
const GAP_MS = 3000;
const HEIGHT = 44;

export class Spark {
  /** `most` is the top of the scale, which else is the largest value. */
  constructor(most = null) {
    this.most = most;
    this.canvas = h("canvas", { class: "spark", "aria-hidden": "true" });
    this.element = h("div", { class: "spark-box" }, this.canvas);
    this.points = [];
    new ResizeObserver(() => this.draw()).observe(this.element);
    onTheme(() => this.draw());
  }

  /** Points are [time in ms, value or null]. */
  show(points) {
    this.points = points;
    this.draw();
  }

  draw() {
    const width = this.element.clientWidth;
    if (width === 0) return;
    const context = sharp(this.canvas, width, HEIGHT);
    const end = this.points.at(-1)?.[0] ?? 0;
    const most = this.most ?? Math.max(1e-9, ...this.points.map(([, value]) => value ?? 0));
    const x = (at) => width - ((end - at) / SPAN_MS) * width;
    const y = (value) => HEIGHT - 1.5 - (Math.min(value, most) / most) * (HEIGHT - 6);
    context.fillStyle = ink("--line");
    context.fillRect(0, HEIGHT - 1, width, 1);
    for (const run of runs(this.points)) {
      context.beginPath();
      run.forEach(([at, value], place) => context[place ? "lineTo" : "moveTo"](x(at), y(value)));
      context.strokeStyle = ink("--accent");
      context.lineWidth = 1.5;
      context.lineJoin = "round";
      context.stroke();
      context.lineTo(x(run.at(-1)[0]), HEIGHT - 1);
      context.lineTo(x(run[0][0]), HEIGHT - 1);
      context.globalAlpha = 0.14;
      context.fillStyle = ink("--accent");
      context.fill();
      context.globalAlpha = 1;
    }
  }
}

function runs(points) {
  const found = [];
  let before = null;
  for (const point of points) {
    if (point[1] === null) {
      before = null;
      continue;
    }
    if (before === null || point[0] - before > GAP_MS) found.push([]);
    found.at(-1).push(point);
    before = point[0];
  }
  return found;
}
