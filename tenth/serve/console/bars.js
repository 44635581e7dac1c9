// One layer's experts as bars, beside the map: the load of each over the mean, which is a line.
import { ink, onTheme, ratioColour, sharp, theme } from "./colours.js";
import { h } from "./dom.js";
import { number } from "./i18n.js";

const HEIGHT = 120;

export class LayerBars {
  constructor() {
    this.canvas = h("canvas", { class: "bars", role: "img", tLabel: "map.layer_bars" });
    this.element = h("div", { class: "bars-box" }, this.canvas);
    this.loads = null;
    new ResizeObserver(() => this.draw()).observe(this.element);
    onTheme(() => this.draw());
  }

  /** `loads` of a layer's experts; `expert` is the one that is looked at. */
  show(loads, expert) {
    Object.assign(this, { loads, expert });
    this.draw();
  }

  draw() {
    const width = this.element.clientWidth;
    if (this.loads === null || width === 0) return;
    const context = sharp(this.canvas, width, HEIGHT);
    const most = Math.max(2, ...Array.from(this.loads, (load) => (Number.isNaN(load) ? 0 : load)));
    const each = Math.min(28, width / this.loads.length);
    const floor = HEIGHT - 2;
    const tall = (load) => (load / most) * (floor - 14);
    const [own, even, name] = [ink("--ink"), ink("--bar"), theme()];
    this.loads.forEach((load, expert) => {
      if (Number.isNaN(load)) return;
      context.fillStyle = expert === this.expert ? own : load > 0.7 && load < 1.4 ? even : ratioColour(load, name);
      const height = Math.max(1, tall(load));
      context.fillRect(expert * each, floor - height, Math.max(1, each - (each >= 3 ? 1 : 0)), height);
    });
    context.strokeStyle = ink("--soft");
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(0, floor - tall(1));
    context.lineTo(width, floor - tall(1));
    context.stroke();
    context.fillStyle = ink("--soft");
    context.font = "11px system-ui, sans-serif";
    context.fillText(`${number(most, 1)}×`, 0, 10);
  }
}
