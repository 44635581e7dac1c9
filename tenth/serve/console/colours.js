// Colours of what is drawn on canvases, as the theme has them. Blue is below the mean, orange above: told apart by
// people who see colours otherwise too, and the same as in the pages that `tenth plot` writes.

const DIVERGING = {
  light: ["#08519c", "#3d8bc8", "#a3cbe6", "#f6f6f3", "#f8c48c", "#e5832a", "#b34a00"],
  dark: ["#8cc8ff", "#4a97d6", "#27587f", "#20242a", "#82480f", "#dd7f22", "#ffc27a"],
};
const STEPS = 121;
/** Powers of two from the mean at which the scale ends. */
export const OCTAVES = 3;

export function theme() {
  const forced = document.documentElement.dataset.theme;
  return forced ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

const parsed = (colour) => [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16));

function scale(stops) {
  const points = stops.map(parsed);
  return Array.from({ length: STEPS }, (_, step) => {
    const place = (step / (STEPS - 1)) * (points.length - 1);
    const low = Math.min(Math.floor(place), points.length - 2);
    const mixed = points[low].map((from, at) => Math.round(from + (place - low) * (points[low + 1][at] - from)));
    return `rgb(${mixed.join(",")})`;
  });
}

const scales = { light: scale(DIVERGING.light), dark: scale(DIVERGING.dark) };

/** The colour of a load over its layer's mean: 1 is pale, an eighth and eight times are the ends. */
export function ratioColour(ratio, name) {
  const octaves = ratio > 0 ? Math.log2(ratio) / OCTAVES : -1;
  return scales[name][Math.round(((Math.max(-1, Math.min(1, octaves)) + 1) / 2) * (STEPS - 1))];
}

/** A colour of the stylesheet. */
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A canvas as sharp as the screen: its context, in CSS pixels. Drawing begins on nothing. */
export function sharp(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== w || canvas.height !== h) {
    Object.assign(canvas, { width: w, height: h });
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Call `draw` when the theme changes. */
export function onTheme(draw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.addEventListener("themechange", draw);
}
