// Blocks of code: a name, a button that copies, colours once the block is whole.
import { copyText, h, icon, say } from "./dom.js";

const MOST = 60_000; // characters that get colours
const COLOURED = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };
let library = null;

/** A block of code with its language's name and a button. */
export function codeBlock(text, language) {
  const code = h("code", { dataset: { language } }, text);
  const copy = h("button", { type: "button", class: "quiet", tLabel: "chat.copy_code" }, icon("copy"));
  copy.addEventListener("click", async () => {
    if (!(await copyText(code.textContent))) return;
    copy.replaceChildren(icon("check"));
    say(copy, "label", "chat.copied");
    setTimeout(() => {
      copy.replaceChildren(icon("copy"));
      say(copy, "label", "chat.copy_code");
    }, 1500);
  });
  const head = h("div", { class: "code-head" }, h("span", {}, language), copy);
  return h("div", { class: "code" }, head, h("pre", { tabIndex: 0 }, code));
}

/** Colours for a block that is whole. The library comes with the first one; without it code stays as it is. */
export async function paint(block) {
  const code = block.querySelector("code");
  const { language } = code.dataset;
  const text = code.textContent;
  if (!language || text.length > MOST) return;
  try {
    library ??= import("./vendor/highlight.min.js");
    const { default: highlight } = await library;
    if (highlight.getLanguage(language) === undefined) return;
    const coloured = highlight.highlight(text, { language, ignoreIllegals: true }).value;
    code.replaceChildren(globalThis.DOMPurify.sanitize(coloured, COLOURED));
  } catch {
    library = null; // not there, after an upgrade of the server: the next block tries again
  }
}
