// What a conversation asks of the model: the system prompt and numbers; an empty field is the model's own default.
import { h, iconButton } from "./dom.js";
import { keep, kept } from "./state.js";

const NAME = "tenth.settings";

/** Fields of the API: what they may be, as the server judges it. */
const FIELDS = [
  { name: "temperature", words: "set.temperature", min: 0, max: 100, step: 0.1 },
  { name: "top_p", words: "set.top_p", min: 0.01, max: 1, step: 0.05 },
  { name: "top_k", words: "set.top_k", min: 0, step: 1 },
  { name: "max_tokens", words: "set.max_tokens", min: 1, step: 1 },
  { name: "thinking_token_budget", words: "set.thinking_budget", min: 0, step: 1, hint: "set.thinking_hint" },
  { name: "expert_mass", words: "set.expert_mass", min: 0.01, max: 1, step: 0.05, hint: "set.expert_mass_hint" },
  { name: "max_experts", words: "set.max_experts", min: 1, step: 1, hint: "set.max_experts_hint" },
  { name: "seed", words: "set.seed", min: 0, step: 1 },
];

export const lastSettings = () => ({ ...kept(NAME, {}) });

/** The fields of a request; `chat` has those that only chats know. */
export function fieldsOf(settings, { chat = true } = {}) {
  const found = {};
  for (const { name } of FIELDS) if (typeof settings[name] === "number") found[name] = settings[name];
  if (chat && typeof settings.thinking === "boolean") found.enable_thinking = settings.thinking;
  return found;
}

/** The panel. `changed` is called with the settings of the conversation that is shown. */
export function settingsPanel(changed, close) {
  let settings = {};
  const inputs = new Map(FIELDS.map((field) => [field.name, numberField(field, (value) => set(field.name, value))]));
  const system = h("textarea", { id: "set-system", rows: 4, tPlaceholder: "set.system_hint" });
  system.addEventListener("input", () => set("system", system.value));
  const thinking = thinkingField((value) => set("thinking", value));
  const reset = h("button", { type: "button", t: "set.reset", onclick: () => show({}, true) });
  const panel = h(
    "aside",
    { class: "settings drawer right", tLabel: "set.title" },
    h(
      "div",
      { class: "drawer-head" },
      h("h2", { t: "set.title" }),
      iconButton("close", "close", close, "drawer-close"),
    ),
    h("div", { class: "field tall" }, h("label", { for: "set-system", t: "set.system" }), system),
    [...inputs.values()].slice(0, 4).map(({ row }) => row),
    thinking.row,
    [...inputs.values()].slice(4).map(({ row }) => row),
    h("p", { class: "fine", t: "set.empty" }),
    reset,
  );
  function set(name, value) {
    if (value === undefined || value === "") delete settings[name];
    else settings[name] = value;
    keep(NAME, settings);
    changed(settings);
  }
  function show(next, tell = false) {
    settings = { ...next };
    system.value = settings.system ?? "";
    thinking.show(settings.thinking);
    for (const [name, { input }] of inputs) {
      input.value = settings[name] ?? "";
      input.setCustomValidity("");
    }
    if (tell) {
      keep(NAME, settings);
      changed(settings);
    }
  }
  return { panel, show };
}

function numberField({ name, words, hint, ...bounds }, changed) {
  const id = `set-${name}`;
  const input = h("input", { id, type: "number", inputmode: "decimal", tPlaceholder: "set.default", ...bounds });
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  input.addEventListener("input", () => {
    const { badInput, rangeOverflow, rangeUnderflow, stepMismatch } = input.validity;
    const wrong = badInput || rangeOverflow || rangeUnderflow || (stepMismatch && bounds.step === 1);
    input.classList.toggle("bad", wrong);
    changed(wrong || input.value === "" ? undefined : input.valueAsNumber);
  });
  const label = h("label", { for: id, t: words });
  const row = h(
    "div",
    { class: "field" },
    label,
    input,
    hint ? h("p", { class: "fine", id: `${id}-hint`, t: hint }) : null,
  );
  return { row, input };
}

function thinkingField(changed) {
  const select = h(
    "select",
    { id: "set-thinking" },
    h("option", { value: "", t: "set.default" }),
    h("option", { value: "on", t: "set.on" }),
    h("option", { value: "off", t: "set.off" }),
  );
  select.addEventListener("change", () => changed(select.value === "" ? undefined : select.value === "on"));
  const row = h("div", { class: "field" }, h("label", { for: "set-thinking", t: "set.thinking" }), select);
  return { row, show: (value) => (select.value = value === undefined ? "" : value ? "on" : "off") };
}
