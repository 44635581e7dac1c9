// Questions in front of the page: the key, a note, the list of keys.
import { h, iconButton } from "./dom.js";
import { apiKey, lookOf, setApiKey, setLook } from "./state.js";

let numbered = 0;

/** A dialog with a form; `done` says whether it may close. Resolves to whether it was done. */
export function openDialog(title, parts, words, done) {
  return new Promise((resolve) => {
    const name = `dialog-${(numbered += 1)}`;
    const submit = words === null ? null : h("button", { type: "submit", class: "primary", t: words });
    const close = () => dialog.close();
    const form = h(
      "form",
      {},
      ...parts,
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", t: submit ? "cancel" : "close", onclick: close }),
        submit,
      ),
    );
    const head = h(
      "div",
      { class: "dialog-head" },
      h("h2", { id: name, t: title }),
      iconButton("close", "close", close),
    );
    const dialog = h("dialog", { "aria-labelledby": name }, head, form);
    let finished = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (submit === null || submit.disabled) return;
      submit.disabled = true;
      finished = await done();
      submit.disabled = false;
      if (finished) dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(finished);
    });
    document.body.append(dialog);
    dialog.showModal();
    form.querySelector("input, textarea")?.focus();
  });
}

let asking = null;

/** Ask for the API key, once for all who need it. */
export function askForKey() {
  asking ??= keyDialog().finally(() => (asking = null));
  return asking;
}

function keyDialog() {
  const input = h("input", {
    id: "api-key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
  });
  const parts = [
    h("p", { t: apiKey() === null ? "key.why" : "key.other" }),
    h("label", { for: "api-key", t: "key.name" }),
    input,
    h("p", { class: "fine", t: "key.kept" }),
  ];
  return openDialog("key.title", parts, "key.use", async () => {
    setApiKey(input.value.trim());
    return true;
  });
}

const SHORTCUTS = [
  ["1 – 5, Alt+1 – Alt+5", "help.views"],
  ["?", "help.help"],
  ["i", "help.write"],
  ["n", "help.new"],
  ["s", "help.settings"],
  ["Esc", "help.stop"],
  ["← ↑ → ↓", "help.cursor"],
  ["Home / End", "help.row"],
  ["m", "help.mode"],
  ["j / k", "help.move"],
  ["a / c / r", "help.judge"],
];

/** What the keys do. */
export function helpDialog() {
  const rows = SHORTCUTS.map(([keys, words]) =>
    h(
      "div",
      {},
      h("dt", {}, ...keys.split(" / ").flatMap((key, at) => [at ? " / " : "", h("kbd", {}, key)])),
      h("dd", { t: words }),
    ),
  );
  const single = h("input", { type: "checkbox", id: "single-keys" });
  single.checked = lookOf("singleKeys", true);
  single.addEventListener("change", () => setLook("singleKeys", single.checked));
  const toggle = h("label", { class: "check" }, single, h("span", { t: "help.single" }));
  return openDialog("help.title", [h("dl", { class: "shortcuts" }, rows), toggle], null, async () => true);
}
