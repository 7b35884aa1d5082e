// The answer that is opened: what happened, in words and as a waterfall.

import * as api from "./api.js";
import { copy } from "./clipboard.js";
import { contentsOf } from "./contents.js";
import { dot, fill, foreign, h, icon, setAttribute, setText } from "./dom.js";
import { facts, notices, offeredTools, sharesAt, sharesOf, story } from "./explain.js";
import { Waterfall } from "./waterfall.js";
import * as words from "./words.js";

/** Milliseconds between two askings for the details of an answer that goes on. */
const PAUSE = 700;

/** *row* with what *detail* has besides: of many rounds and calls, the feed tells the last alone. */
function completed(row, detail) {
  if (detail === null) return row;
  const all = (name) => {
    const first = row[name][0]?.number ?? 0;
    return [...detail[name].filter((part) => part.number < first), ...row[name]];
  };
  return { ...row, rounds: all("rounds"), calls: all("calls") };
}

/** Changes of a row with which its details change. */
function stageOf(row) {
  const running = (parts) => parts.filter((part) => part.ended === null).length;
  return [row.key, row.id, row.status, row.offered, row.not_injected, words.total(row.rounds),
    running(row.rounds), words.total(row.calls), running(row.calls)].join();
}

export class Answer {
  row = null;
  /** Whether it is kept no longer. */
  gone = false;
  #pane;
  #store;
  #actions;
  #detail = null;
  #stage = "";
  #asked = 0;
  #timer = null;
  #abort = null;
  #parts = null;
  #drawn = {};

  /** *actions* are close(), showChat(conversation). */
  constructor(pane, store, actions) {
    this.#pane = pane;
    this.#store = store;
    this.#actions = actions;
    this.close();
  }

  open(row) {
    this.#forget();
    this.row = row;
    this.#build();
    this.update();
    this.#pane.scrollTop = 0;
  }

  /** Show that nothing is opened; *words* say why. */
  close(sentence = "Choose an answer in the list to see what happened in it.") {
    this.#forget();
    fill(this.#pane, h("div", { class: "empty" }, this.#backButton(), h("p", {}, sentence)));
  }

  /** The feed has told of it, or it is kept no longer. */
  update() {
    if (this.row === null) return;
    const row = this.#store.rows.get(this.row.key);
    const gone = row === undefined || row.id !== this.row.id || row.at !== this.row.at;
    if (!gone) this.row = completed(row, this.#detail);
    this.gone = gone;
    this.#parts.gone.hidden = !gone;
    this.#show(gone);
    if (!gone && stageOf(this.row) !== this.#stage) this.#ask();
  }

  /** Let its time count on, if it runs. */
  tick() {
    if (this.row === null || this.row.status !== 0) return;
    const elapsed = this.#store.elapsed(this.row);
    this.#parts.waterfall.show(this.row, elapsed);
    this.#drawShares(elapsed);
    setText(this.#parts.lasted, words.rowWords(this.row, elapsed));
  }

  resized() {
    if (this.row !== null) this.#parts.waterfall.show(this.row, this.#store.elapsed(this.row));
  }

  #forget() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#timer = this.#abort = this.#detail = this.row = this.#parts = null;
    this.#stage = "";
    this.#drawn = {};
  }

  #backButton() {
    return h("button", { type: "button", class: "back", click: () => this.#actions.close() },
      icon("back"), "All answers");
  }

  #build() {
    const parts = {
      title: foreign("", "title"),
      lasted: h("span", { class: "lasted" }),
      meta: h("span", { class: "meta" }),
      stop: h("button", { type: "button", class: "danger", click: () => this.#stop() },
        icon("stop"), "Stop"),
      curl: h("button", { type: "button", click: () => this.#copy() }, icon("copy"), "Copy as curl"),
      download: h("a", { class: "button", download: `${this.row.key}.json`,
        href: api.downloadUrl(this.row.key) }, icon("download"), "Download JSON"),
      said: h("p", { class: "said", role: "status" }),
      byHand: h("div", { hidden: true }),
      gone: h("p", { class: "notice", hidden: true },
        "The proxy keeps this answer no longer; this is the last that the page heard of it."),
      notices: h("div", { class: "notices" }),
      story: h("p", { class: "story" }),
      shares: h("div", { class: "shares-box" }),
      waterfall: new Waterfall(),
      offered: h("div", {}),
      contents: h("div", {}),
      facts: h("dl", { class: "facts" }),
    };
    this.#parts = parts;
    const section = (title, ...children) =>
      h("section", { class: "card" }, h("h3", {}, title), children);
    fill(
      this.#pane,
      this.#backButton(),
      h("header", { class: "answer-head" },
        h("div", { class: "names" }, h("h2", {}, parts.title),
          h("p", { class: "line" }, parts.lasted, parts.meta)),
        h("div", { class: "buttons" }, parts.stop, parts.curl, parts.download)),
      parts.said, parts.byHand, parts.gone, parts.notices, parts.story,
      section("Where the time went", parts.shares),
      section("Step by step", legend(), parts.waterfall.element),
      section("Tools it was offered", parts.offered),
      section("Contents", parts.contents),
      section("Facts", parts.facts),
    );
  }

  #show(gone) {
    const { row } = this;
    const parts = this.#parts;
    const state = words.stateOfRow(row);
    const elapsed = this.#store.elapsed(row);
    setText(parts.title, row.model || `${row.method} ${row.path}`);
    setAttribute(parts.lasted, "class", `lasted ${state}`);
    setText(parts.lasted, words.rowWords(row, elapsed));
    setText(parts.meta, [
      `${words.day(row.at)}, ${words.clock(row.at)}`,
      row.first_byte === null ? null : `first byte after ${words.seconds(row.first_byte)}`,
      row.rounds.length ? (row.streamed ? "streamed" : "not streamed") : null,
    ].filter(Boolean).join(" · "));
    parts.stop.hidden = state !== "running" || gone;
    parts.download.hidden = gone;
    parts.curl.disabled = this.#detail === null;
    this.#draw("notices", () => notices(row), row.kind, row.error, row.status, row.limit,
      row.not_injected, row.offered, row.rounds.length > 0);
    this.#draw("story", () => story(row), row);
    this.#drawShares(elapsed);
    parts.waterfall.show(row, elapsed);
    this.#draw("offered", () => offeredTools(row, this.#detail), row.offered, row.not_injected,
      this.#detail?.offered_tools, this.#detail?.called, this.#detail?.withheld);
    this.#draw("contents", () => contentsOf(row, this.#detail), this.#detail?.contents,
      this.#detail === null, row.calls.length);
    this.#draw("facts", () => facts(row, this.#actions.showChat), row);
  }

  #drawShares(elapsed) {
    const shares = sharesAt(this.row, elapsed);
    this.#draw("shares", () => sharesOf(this.row, shares), shares, this.row.total === null);
  }

  /** Fill the part *name* anew if any of what it shows has changed; what has the focus keeps it. */
  #draw(name, make, ...shown) {
    const drawn = JSON.stringify(shown);
    if (drawn === this.#drawn[name]) return;
    this.#drawn[name] = drawn;
    const part = this.#parts[name];
    const open = new Set([...part.querySelectorAll("details[open]")].map((d) => d.dataset.key));
    const controls = () => [...part.querySelectorAll("a, button, summary, pre")];
    const focused = controls().indexOf(document.activeElement);
    fill(part, make());
    for (const details of part.querySelectorAll("details")) {
      if (open.has(details.dataset.key)) details.open = true;
    }
    if (focused >= 0) controls()[focused]?.focus({ preventScroll: true });
  }

  #ask() {
    if (this.#timer !== null) return;
    this.#timer = setTimeout(async () => {
      if (this.gone) {
        this.#timer = null;
        return;
      }
      const { row } = this;
      this.#stage = stageOf(row);
      this.#asked = performance.now();
      this.#abort = new AbortController();
      try {
        const detail = await api.detail(row.key, this.#abort.signal);
        if (this.row?.key !== row.key) return;
        if (detail !== null) this.#detail = detail;
      } catch (error) {
        if (error.name !== "AbortError" && this.row?.key === row.key) this.#say(`The details could not be had: ${error.message}.`);
      }
      if (this.row?.key !== row.key) return;
      this.#timer = null;
      this.update();
    }, Math.max(0, this.#asked + PAUSE - performance.now()));
  }

  #say(sentence) {
    setText(this.#parts.said, sentence);
  }

  async #stop() {
    const { row } = this;
    const parts = this.#parts;
    parts.stop.disabled = true;
    let sentence;
    try {
      sentence = (await api.stop(row.key)) ? "Stopped: the answer is cut off, and what it had started is ended."
        : "It had ended before it could be stopped.";
    } catch (error) {
      sentence = `It could not be stopped: ${error.message}.`;
    }
    parts.stop.disabled = false;
    setText(parts.said, sentence);
  }

  async #copy() {
    const parts = this.#parts;
    const text = this.#detail.curl;
    if (await copy(text)) {
      setText(parts.said, this.#detail.curl_lacks
        ? `Copied, with a placeholder: ${this.#detail.curl_lacks}.` : "Copied.");
    } else {
      setText(parts.said, "The browser does not let the page copy. Here it is:");
      parts.byHand.hidden = false;
      const area = h("textarea", { class: "code", readonly: true, rows: 6, "aria-label": "curl command" });
      area.value = text;
      fill(parts.byHand, area);
      area.select();
    }
  }
}

function legend() {
  const entry = (kind, text) => h("li", {}, h("span", { class: `swatch ${kind}` }), text);
  return h("ul", { class: "swatches", "aria-label": "Colours" },
    entry("wait", "waiting for the model"), entry("stream", "model streams"),
    entry("slot", "waiting for a slot"), entry("tool", "tool runs"),
    entry("list", "list of tools"), h("li", {}, dot("first-byte"), "first byte sent"));
}
