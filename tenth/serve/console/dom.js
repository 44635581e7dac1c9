// Elements without markup: no string ever becomes HTML here, so nothing has to be escaped.
import { onLanguage, t } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";
const said = new WeakMap(); // what a translated element says, to say it again in another language

/** An element. `t` is its text by key, `tLabel` its accessible name and tooltip, `onclick` and others are listeners. */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name === "class") made.className = value;
    else if (name === "t") say(made, "text", value);
    else if (name === "tLabel") say(made, "label", value);
    else if (name === "tPlaceholder") say(made, "placeholder", value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(made.dataset, value);
    else if (typeof value === "boolean" || name === "value" || name === "tabIndex") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** What an element says: a key of the table of words, or [key, values]. `what` is text, label or placeholder. */
export function say(element, what, words) {
  const all = said.get(element) ?? {};
  all[what] = words;
  said.set(element, all);
  element.dataset.said = "";
  apply(element, all);
}

function apply(element, all) {
  for (const [what, words] of Object.entries(all)) {
    const text = words === "" ? "" : Array.isArray(words) ? t(...words) : t(words);
    if (what === "text") element.textContent = text;
    else if (what === "placeholder") element.placeholder = text;
    else {
      element.setAttribute("aria-label", text);
      if (element.tagName === "BUTTON" || element.tagName === "A") element.title = text;
    }
  }
}

onLanguage(() => {
  for (const element of document.querySelectorAll("[data-said]")) apply(element, said.get(element) ?? {});
});

const ICONS = {
  chat: "M4 5h16v11H9l-5 4z",
  experts:
    "M4 4h4v4H4zM10 4h4v4h-4zM16 4h4v4h-4zM4 10h4v4H4zM10 10h4v4h-4zM16 10h4v4h-4zM4 16h4v4H4zM10 16h4v4h-4zM16 16h4v4h-4z",
  load: "M3 13h4l3-8 4 14 3-6h4",
  reviews: "M9 6h11M9 12h11M9 18h11M3.5 6l1 1 2-2M3.5 12l1 1 2-2M3.5 18l1 1 2-2",
  reports: "M6 3h8l5 5v13H6zM14 3v5h5M9 17v-4M12 17v-6M15 17v-2",
  sun: "M12 8a4 4 0 100 8 4 4 0 000-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5L19 19M5 19l1.5-1.5M17.5 6.5L19 5",
  help: "M9 9a3 3 0 115 2c-1.5 1-2 1.5-2 3M12 17.5v.5M12 3a9 9 0 100 18 9 9 0 000-18z",
  key: "M14.5 3a6.500 6.500 0 00-6.200 8.400L3 16.700V21h4.300v-2.200h2.200v-2.200h2L12.600 15.700A6.500 6.500 0 1014.500 3zM16 8h.01",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12l5 5L20 7",
  edit: "M4 20h4L19 9l-4-4L4 16z",
  again: "M20 11a8 8 0 10-2.300 6M20 5v6h-6",
  go: "M7 5l11 7-11 7z",
  flag: "M5 21V4h13l-3 4.500 3 4.500H5",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  plus: "M12 5v14M5 12h14",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
  down: "M12 4v12M6 11l6 6 6-6M5 20h14",
  list: "M4 6h16M4 12h16M4 18h16",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M16 4.500v5M8 14.500v5",
  close: "M6 6l12 12M18 6L6 18",
  open: "M3 7h6l2 2h10v10H3z",
};

/** A drawn icon; it says nothing, its button does. */
export function icon(name) {
  const drawn = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
    drawn.setAttribute(key, value);
  }
  path.setAttribute("d", ICONS[name]);
  drawn.append(path);
  return drawn;
}

/** A button that is an icon with a name. */
export function iconButton(name, label, onclick, kind = "") {
  return h("button", { type: "button", class: `quiet ${kind}`, tLabel: label, onclick }, icon(name));
}

/** A few words that go away again. */
export function toast(words) {
  const shown = h("div", { class: "toast", t: words });
  document.getElementById("toasts").append(shown);
  setTimeout(() => shown.remove(), 4000);
}

/** Into the clipboard; also where the page is not on a secure origin and browsers have no clipboard for it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const holder = h("textarea", { class: "offstage", "aria-hidden": "true", value: text });
    const before = document.activeElement;
    document.body.append(holder);
    holder.select();
    const done = document.execCommand("copy");
    holder.remove();
    before?.focus();
    return done;
  }
}

/** Let the browser save a text as a file. */
export function saveFile(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** A row of buttons of which one is pressed; `choose` is called with its value. */
export function segmented(label, choices, chosen, choose) {
  const buttons = choices.map(([value, words]) =>
    h("button", {
      type: "button",
      t: words,
      dataset: { value },
      "aria-pressed": String(value === chosen),
      onclick: () => set(value, true),
    }),
  );
  const row = h("div", { class: "segmented", role: "group", tLabel: label }, buttons);
  function set(value, tell) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    if (tell) choose(value);
  }
  row.set = (value) => set(value, false);
  return row;
}
