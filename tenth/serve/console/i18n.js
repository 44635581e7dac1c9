// Two languages: which one, what it calls things, how it writes numbers.
import { WORDS } from "./words.js";

const heard = new Set();
let language = document.documentElement.lang === "zh" ? "zh" : "en";

export const languageNow = () => language;

/** Call `listener` whenever the language changes. */
export function onLanguage(listener) {
  heard.add(listener);
}

export function setLanguage(name) {
  language = name;
  document.documentElement.lang = name;
  for (const listener of heard) listener();
}

/** The words of a key, with {name} filled in. */
export function t(key, values = {}) {
  const pair = WORDS[key];
  if (pair === undefined) throw new Error(`no words for ${key}`);
  return pair[language === "zh" ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

const formats = new Map();

/** A number as the language writes it. */
export function number(value, digits = 0, least = 0) {
  const name = `${language} ${digits} ${least}`;
  if (!formats.has(name)) {
    formats.set(name, new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: least }));
  }
  return formats.get(name).format(value);
}

/** A number of any size in three digits or so. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001 || size >= 1e6) return value.toExponential(2);
  return number(value, size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 4);
}

export const percent = (share, digits = 1) =>
  share === null || share === undefined ? "–" : `${number(100 * share, digits)}%`;

/** Seconds as people say them. */
export function span(seconds) {
  if (seconds < 1) return t("unit.ms", { n: number(1000 * seconds) });
  if (seconds < 60) return t("unit.s", { n: seconds < 10 ? number(seconds, 1, 1) : number(seconds) });
  const [minutes, rest] = [Math.floor(seconds / 60), Math.floor(seconds % 60)];
  if (minutes >= 60) return `${t("unit.h", { n: Math.floor(minutes / 60) })} ${t("unit.min", { n: minutes % 60 })}`;
  return rest ? `${t("unit.min", { n: minutes })} ${t("unit.s", { n: rest })}` : t("unit.min", { n: minutes });
}

/** A moment, in seconds since 1970. */
export function moment(seconds) {
  return new Date(1000 * seconds).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });
}
