// The live feed: one stream for all views that look, none while the page is hidden or nobody looks.
import { ApiError, call, events } from "./api.js";

const KEPT_MS = 300_000;
const LONGEST_WAIT_MS = 15_000;

/** Unsigned 32-bit numbers, little endian, from base64. */
export function uint32s(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Uint32Array.from({ length: bytes.length >> 2 }, (_, at) => view.getUint32(4 * at, true));
}

/** What a server says that has no model yet. */
const NOTHING = {
  experts: null,
  requests: { running: 0, waiting: 0, list: [] },
  cache: { used_tokens: 0, tokens: 0, prefix_hit_rate: null },
  speed: { generated_per_s: 0, prompt_per_s: 0, limit: null },
};

class Feed {
  constructor() {
    this.watchers = new Set();
    this.history = []; // {at, speed, ...}: a few numbers of each tick of the last minutes
    this.last = null;
    this.state = "idle"; // idle, connecting, live, lost, off
    this.stop = null;
    document.addEventListener("visibilitychange", () => this.consider());
  }

  /** Have `watcher.tick(data)` and `watcher.state(name, why)` called until the returned function is. */
  watch(watcher) {
    this.watchers.add(watcher);
    if (this.state === "off" || this.state === "lost") this.state = "idle";
    watcher.state(this.state, this.why);
    if (this.last !== null) watcher.tick(this.last);
    this.consider();
    return () => {
      this.watchers.delete(watcher);
      this.consider();
    };
  }

  consider() {
    const wanted = this.watchers.size > 0 && document.visibilityState === "visible";
    if (wanted && this.stop === null) this.run();
    if (!wanted && this.stop !== null) {
      this.stop.abort();
      this.stop = null;
      this.tell("idle");
    }
  }

  tell(state, why = "") {
    Object.assign(this, { state, why });
    for (const watcher of this.watchers) watcher.state(state, why);
  }

  async run() {
    const { signal } = (this.stop = new AbortController());
    for (let wait = 500; !signal.aborted; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      try {
        this.tell("connecting");
        for await (const data of events(await call("/v1/live", { signal }))) {
          this.take(JSON.parse(data));
          wait = 500;
        }
        if (!signal.aborted) this.tell("lost");
      } catch (error) {
        if (signal.aborted) return;
        const off = error instanceof ApiError && (error.status === 404 || error.status === 401);
        this.tell(off ? "off" : "lost", error.status === 404 ? "" : (error.words ?? error.message));
        if (off) return void (this.stop = null);
      }
      await new Promise((resolve) => {
        signal.addEventListener("abort", resolve);
        setTimeout(resolve, wait);
      });
    }
  }

  take(data) {
    if (data.error) throw new ApiError(500, data.error.message);
    if (data.experts) {
      for (const part of [data.experts.now, data.experts.recent]) part.counts = uint32s(part.counts);
    }
    const { requests, cache, speed } = (this.last = { ...NOTHING, ...data });
    const at = performance.now();
    this.history.push({
      at,
      generated: speed.generated_per_s,
      prompt: speed.prompt_per_s,
      running: requests.running,
      waiting: requests.waiting,
      cache: cache.tokens ? cache.used_tokens / cache.tokens : null,
      hits: cache.prefix_hit_rate,
      share: speed.limit?.share ?? null,
    });
    while (this.history[0].at < at - KEPT_MS) this.history.shift();
    if (this.state !== "live") this.tell("live");
    for (const watcher of this.watchers) watcher.tick(this.last);
  }
}

export const feed = new Feed();
