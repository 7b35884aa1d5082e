// The live list: one row an answer, newest first. Only rows that have changed are touched.

import { dot, fill, foreign, h, setAttribute, setText } from "./dom.js";
import { byAge } from "./store.js";
import * as words from "./words.js";

/** Dots that one row shows. */
const MAX_DOTS = 14;

export class List {
  #box;
  #store;
  #filters;
  #open;
  #items = new Map(); // by key
  #cursor = null;
  #opened = null;

  /** *open* is called with the key of a row that is chosen. */
  constructor(box, store, filters, open) {
    this.#box = box;
    this.#store = store;
    this.#filters = filters;
    this.#open = open;
    box.addEventListener("click", (event) => {
      const element = event.target.closest("[role=option]");
      if (element === null) return;
      this.#point(Number(element.dataset.key));
      this.#open(this.#cursor);
    });
    box.addEventListener("focus", () => {
      if (this.#cursor === null || !this.#isShown(this.#cursor)) this.move(1, true);
    });
  }

  get shown() {
    let shown = 0;
    for (const item of this.#items.values()) shown += !item.element.hidden;
    return shown;
  }

  update({ keys, all }) {
    for (const key of all ? new Set([...this.#items.keys(), ...this.#store.rows.keys()]) : keys) {
      const row = this.#store.rows.get(key);
      // A daemon that has started anew gives the same keys to others.
      if (row === undefined || this.#items.get(key)?.at !== row.at) this.#remove(key);
      if (row !== undefined) (this.#items.get(key) ?? this.#add(row)).show(row, this.#filters.admits(row));
    }
    this.tick();
  }

  /** Show and hide as the filters now say. */
  refilter() {
    for (const [key, item] of this.#items) {
      const row = this.#store.rows.get(key);
      item.element.hidden = row === undefined || !this.#filters.admits(row);
    }
  }

  /** Let the time of those that run count on. Whether any does. */
  tick() {
    let any = false;
    for (const [key, item] of this.#items) {
      if (!item.running) continue;
      any = true;
      const row = this.#store.rows.get(key);
      if (row === undefined) continue; // kept no longer: it goes with the next frame
      const elapsed = this.#store.elapsed(row);
      if (!item.element.hidden) setText(item.total, words.counting(elapsed));
    }
    return any;
  }

  /** Mark the row of the answer that is opened, null for none. */
  markOpened(key) {
    if (this.#opened !== null) this.#items.get(this.#opened)?.mark("aria-selected", "false");
    this.#opened = key;
    if (key !== null) {
      this.#items.get(key)?.mark("aria-selected", "true");
      if (this.#items.has(key)) this.#point(key);
    }
  }

  /** Move the cursor by *steps* rows, or to the first or last one (*ends*). */
  move(steps, ends = false) {
    const shown = [...this.#box.children].filter((element) => !element.hidden);
    if (shown.length === 0) return;
    const at = ends ? -1 : shown.findIndex((e) => Number(e.dataset.key) === this.#cursor);
    let to = steps > 0 ? at + steps : at < 0 ? shown.length - 1 : at + steps;
    to = Math.min(shown.length - 1, Math.max(0, to));
    this.#point(Number(shown[to].dataset.key));
    shown[to].scrollIntoView({ block: "nearest" });
  }

  focus() {
    this.#box.focus({ preventScroll: true });
    this.#items.get(this.#cursor)?.element.scrollIntoView({ block: "nearest" });
  }

  openCursor() {
    if (this.#cursor !== null && this.#isShown(this.#cursor)) this.#open(this.#cursor);
  }

  #isShown(key) {
    const item = this.#items.get(key);
    return item !== undefined && !item.element.hidden;
  }

  #point(key) {
    this.#items.get(this.#cursor)?.element.classList.remove("cursor");
    this.#cursor = key;
    const element = this.#items.get(key)?.element;
    element?.classList.add("cursor");
    setAttribute(this.#box, "aria-activedescendant", element?.id ?? null);
  }

  #add(row) {
    const item = new Item(row);
    this.#items.set(row.key, item);
    if (row.key === this.#opened) item.mark("aria-selected", "true");
    let below = this.#box.firstElementChild; // newer ones are few
    while (below !== null && this.#items.get(Number(below.dataset.key)).isNewer(row)) {
      below = below.nextElementSibling;
    }
    this.#box.insertBefore(item.element, below);
    return item;
  }

  #remove(key) {
    this.#items.get(key)?.element.remove();
    this.#items.delete(key);
    if (key === this.#cursor) this.#point(null);
  }
}

/** One row. */
class Item {
  running = false;
  #dots = "";

  constructor({ key, at }) {
    this.key = key;
    this.at = at;
    this.time = h("span", { class: "time" });
    this.model = foreign("", "model");
    this.total = h("span", { class: "total" });
    this.who = foreign("", "who");
    this.rounds = h("span", {});
    this.dots = h("span", { class: "dots", "aria-hidden": "true" });
    this.trouble = foreign("", "trouble");
    this.first = h("span", { class: "first" });
    this.spoken = h("span", { class: "unseen" });
    this.element = h(
      "div",
      { role: "option", id: `row-${key}`, class: "row", "aria-selected": "false", "data-key": key },
      h("span", { class: "mark", "aria-hidden": "true" }),
      this.time,
      this.model,
      this.total,
      this.who,
      h("span", { class: "deeds" }, this.rounds, this.dots, this.trouble),
      this.first,
      this.spoken,
    );
  }

  /** Whether it stands above that of *row*, which may have been found later, but began before. */
  isNewer(row) {
    return byAge(this, row) > 0;
  }

  mark(name, value) {
    setAttribute(this.element, name, value);
  }

  show(row, admitted) {
    const state = words.stateOfRow(row);
    this.running = state === "running";
    this.element.hidden = !admitted;
    setAttribute(this.element, "class", this.element.classList.contains("cursor")
      ? `row ${state} cursor` : `row ${state}`);
    setText(this.time, words.clock(row.at));
    const isChat = row.model !== "" || row.rounds.length > 0;
    setText(this.model, isChat ? row.model || "no model named" : `${row.method} ${row.path}`);
    setText(this.who, row.who || "no key");
    setText(this.rounds, isChat ? words.count(words.total(row.rounds), "round") : "");
    setText(this.trouble, this.#trouble(row, state));
    setText(this.first, row.first_byte === null ? "" : words.seconds(row.first_byte));
    if (!this.running) setText(this.total, words.seconds(row.total));
    const nameOf = words.namesOf(row.calls);
    const dots = row.calls.map((call) => `${nameOf(call)} ${words.outcomeWords(call)}`).join("; ");
    const calls = words.total(row.calls);
    if (dots !== this.#dots) {
      this.#dots = dots;
      fill(
        this.dots,
        row.calls.slice(0, MAX_DOTS).map((call) =>
          dot(words.stateOf(call), `${nameOf(call)}: ${words.outcomeWords(call)}`)),
        calls > MAX_DOTS ? ` +${calls - MAX_DOTS}` : null,
      );
    }
    setText(this.spoken, [words.ROW_STATES[state], dots].filter(Boolean).join(", "));
  }

  #trouble(row, state) {
    if (state === "running") return row.calls.length || row.rounds.length > 1 ? "" : "waiting";
    if (state === "left") return row.kind || "client left";
    if (state === "error") return row.kind || `status ${row.status}`;
    return row.limit ? `limit: ${row.limit}` : "";
  }
}
