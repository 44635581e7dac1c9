// The page: five views by hash, keys, looks, and a line that says how the server is.
import { call, onKeyNeeded } from "./api.js";
import { chatView } from "./chat.js";
import { theme } from "./colours.js";
import { askForKey, helpDialog } from "./dialogs.js";
import { h, icon, iconButton, say } from "./dom.js";
import { expertsView } from "./experts.js";
import { languageNow, setLanguage } from "./i18n.js";
import { loadView } from "./load.js";
import { reportsView } from "./reports.js";
import { reviewsView } from "./reviews.js";
import { lookOf, setLook } from "./state.js";

const VIEWS = [
  ["chat", "tab.chat", chatView],
  ["experts", "tab.experts", expertsView],
  ["load", "tab.load", loadView],
  ["reviews", "tab.reviews", reviewsView],
  ["reports", "tab.reports", reportsView],
];
const ASK_AGAIN_MS = 15_000;
const main = document.getElementById("main");
const made = new Map(); // views are made when they are first looked at
let current = null;

onKeyNeeded(askForKey);

const links = new Map(
  VIEWS.map(([name, words]) => [name, h("a", { href: `#/${name}` }, icon(name), h("span", { t: words }))]),
);
document.getElementById("tabs").append(...links.values());

function route() {
  const wanted = location.hash.replace(/^#\//, "");
  const [name, , make] = VIEWS.find(([each]) => each === wanted) ?? VIEWS[0];
  if (current?.name === name) return;
  current?.view.hidden();
  if (!made.has(name)) {
    made.set(name, make());
    main.append(made.get(name).element);
  }
  for (const [each, link] of links) {
    if (each === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const [each, view] of made) view.element.hidden = each !== name;
  current = { name, view: made.get(name) };
  document.body.dataset.view = name;
  current.view.shown();
}

function setTheme() {
  const next = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  setLook("theme", next);
  document.dispatchEvent(new Event("themechange"));
}

function switchLanguage() {
  setLanguage(languageNow() === "zh" ? "en" : "zh");
  setLook("language", languageNow());
}

const tongue = h(
  "button",
  { type: "button", class: "quiet tongue", tLabel: "look.language", onclick: switchLanguage },
  h("span", { t: "look.other_language" }),
);
document
  .getElementById("tools")
  .append(
    tongue,
    iconButton("sun", "look.theme", setTheme),
    iconButton("key", "key.title", askForKey),
    iconButton("help", "help.title", helpDialog),
  );
say(document.getElementById("skip"), "text", "skip");
say(document.getElementById("tabs"), "label", "tabs");
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash belongs to the views
  main.focus();
});

function typing(element) {
  return element.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName);
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") return void current.view.keys.Escape?.();
  const digit = /^Digit([1-5])$/.exec(event.code)?.[1];
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  const single = plain && !typing(event.target) && lookOf("singleKeys", true);
  if (digit && !event.shiftKey && (single || (event.altKey && !event.ctrlKey && !event.metaKey))) {
    location.hash = `#/${VIEWS[digit - 1][0]}`;
  } else if (single && event.key === "?") helpDialog();
  else if (single && current.view.keys[event.key]) current.view.keys[event.key]();
  else return;
  event.preventDefault();
});

const status = document.getElementById("status");
const STATES = {
  ready: "server.ready",
  loading: "server.loading",
  "warming up": "server.warming",
  draining: "server.stopping",
  stopped: "server.stopping",
  failed: "server.failed",
};
let named = false;
let mayAsk = true; // for the key, once by itself; then whoever needs one asks

/** How the server is, and what it serves once it is ready. */
async function look() {
  let phase = "gone";
  try {
    phase = (await (await fetch("/health", { cache: "no-store" })).json()).phase;
  } catch {
    // it is not there, or something between says so
  }
  status.dataset.phase = phase;
  if (phase === "ready" && named) return;
  say(status, "text", STATES[phase] ?? "server.gone");
  named = false;
  if (phase !== "ready") return;
  say(status, "text", "server.needs_key");
  const ask = mayAsk;
  mayAsk = false;
  const found = await (await call("/v1/models", { ask })).json();
  say(status, "text", "");
  delete status.dataset.said;
  status.textContent = found.data[0].id;
  status.title = found.data[0].id;
  named = true;
}

async function keepLooking() {
  if (document.visibilityState === "visible") await look().catch(() => {});
  setTimeout(keepLooking, named ? ASK_AGAIN_MS : 2000);
}

window.addEventListener("hashchange", route);
route();
keepLooking();
