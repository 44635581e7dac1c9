// Markdown that grows: what is finished stays as it is, only the last block is drawn again.
// The text is a stranger's: markup in it is shown as text, images are links, and DOMPurify judges whatever is left.
import { codeBlock, paint } from "./code.js";
import { h } from "./dom.js";
import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const purify = globalThis.DOMPurify;
const ALLOWED = {
  ALLOWED_TAGS:
    "p br hr h1 h2 h3 h4 h5 h6 strong em del code pre blockquote ul ol li a table thead tbody tr th td span".split(" "),
  ALLOWED_ATTR: ["href", "class", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const FENCE = /^ {0,3}(`{3,}|~{3,})([^\n`]*)\n/;
const LARGEST_LOOK_BACK = 60_000; // characters of one block that are still drawn as Markdown while they grow

const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

function linked(href, inner) {
  return /^(?:https?:|mailto:)/i.test(href ?? "") ? `<a href="${escaped(href)}">${inner}</a>` : inner;
}

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => linked(href, escaped(text || href || "")),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    link({ href, tokens }) {
      return linked(href, this.parser.parseInline(tokens));
    },
  },
});

/** Nodes of finished Markdown. */
function drawn(tokens) {
  const found = purify.sanitize(marked.parser(tokens), ALLOWED);
  for (const link of found.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of found.querySelectorAll("table")) {
    const around = h("div", { class: "table-scroll", tabIndex: 0, role: "group", tLabel: "chat.table" });
    table.replaceWith(around);
    around.append(table);
  }
  for (const pre of found.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const language = /language-(\S+)/.exec(code?.className ?? "")?.[1] ?? "";
    pre.replaceWith(codeBlock((code ?? pre).textContent.replace(/\n$/, ""), language));
  }
  return found;
}

/** A text that is appended to, drawn into an element. */
export class GrowingMarkdown {
  constructor(element) {
    this.element = element;
    this.text = "";
    this.settled = 0; // characters that are drawn for good
    this.seen = 0; // characters that have been looked at
    this.tail = h("div", { class: "tail" });
    this.fence = null; // the code block that is open, of which only new text is appended
    this.cost = 0;
    this.timer = null;
    element.replaceChildren(this.tail);
  }

  /** More text; it is drawn soon. Drawing takes an eighth of the time at most, however long a block grows. */
  push(text) {
    this.text += text.replaceAll("\r", ""); // as the lexer counts
    if (this.timer !== null) return;
    this.timer = setTimeout(
      () => {
        this.timer = null;
        this.draw();
      },
      Math.max(33, 8 * this.cost),
    );
  }

  /** No more text: everything is drawn, code in colours. */
  finish() {
    clearTimeout(this.timer);
    this.timer = null;
    this.draw(true);
  }

  draw(whole = false) {
    const begin = performance.now();
    if (whole || !this.growFence()) this.drawTail(whole);
    this.seen = this.text.length;
    this.cost = performance.now() - begin;
  }

  drawTail(whole) {
    const text = this.text.slice(this.settled);
    if (!whole && text.length > LARGEST_LOOK_BACK) {
      this.tail.append(this.text.slice(this.seen));
      return;
    }
    const tokens = marked.lexer(text);
    const links = tokens.links;
    const last = whole ? tokens.length : lastBlock(tokens);
    const ready = tokens.slice(0, last);
    if (ready.length > 0) {
      const nodes = drawn(Object.assign(ready, { links }));
      for (const block of nodes.querySelectorAll(".code")) paint(block);
      this.tail.before(nodes);
      this.settled += ready.reduce((sum, token) => sum + token.raw.length, 0);
    }
    const rest = tokens.slice(last);
    this.tail.replaceChildren(drawn(Object.assign(rest, { links })));
    this.fence = whole ? null : this.openFence(rest);
  }

  /** The text node of a code block that is not closed yet, and the fence that would close it. */
  openFence(tokens) {
    const opened = tokens.length === 1 && tokens[0].type === "code" ? FENCE.exec(tokens[0].raw) : null;
    const code = this.tail.querySelector(".code code");
    if (opened === null || code === null || new RegExp(`\n {0,3}${opened[1]}`).test(tokens[0].raw)) return null;
    const body = this.text.slice(this.settled + opened[0].length);
    const node = document.createTextNode(body);
    code.replaceChildren(node);
    return { node, mark: opened[1] };
  }

  /** Append to an open code block; false where there is none, or it may have come to its end. */
  growFence() {
    if (this.fence === null) return false;
    const from = Math.max(this.settled, this.text.lastIndexOf("\n", this.seen - 1));
    if (this.text.slice(from).includes(this.fence.mark)) return false;
    this.fence.node.appendData(this.text.slice(this.seen));
    return true;
  }
}

/** Where the last block begins, which more text may still change. */
function lastBlock(tokens) {
  let at = tokens.length - 1;
  while (at > 0 && tokens[at].type === "space") at -= 1;
  return Math.max(at, 0);
}

/** Markdown that is whole, in a new element. */
export function markdown(text, kind = "prose") {
  const element = h("div", { class: kind });
  const growing = new GrowingMarkdown(element);
  growing.text = text.replaceAll("\r", "");
  growing.finish();
  return element;
}
