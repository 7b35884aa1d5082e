// The waterfall of an answer: when it waited for the model, when that streamed, when tools ran.

import { dot, fill, foreign, h, setAttribute, setText } from "./dom.js";
import * as words from "./words.js";

/** Seconds from which a call has waited for a slot, and not for the proxy's own work. */
const WAITED = 0.005;

/** Lanes that are drawn. */
const MAX_LANES = 300;

/**
 * What is drawn of *row*: lanes from top to bottom, each with its bars. Pure.
 * @param {object} row of the feed
 * @param {number} end seconds until which it is drawn
 */
export function plan(row, end) {
  const lanes = [];
  const calls = byRound(row.calls);
  const nameOf = words.namesOf(row.calls);
  const first = row.rounds[0];
  if (row.listing >= 0.001) {
    const until = first?.began ?? end;
    lanes.push({
      key: "listing",
      bars: [bar("list", Math.max(0, until - row.listing), until)],
      words: ["list of tools", `waited ${words.seconds(row.listing)} for it`],
    });
  }
  for (const round of row.rounds) {
    lanes.push(roundLane(round, end));
    for (const call of calls.get(round.number) ?? []) lanes.push(callLane(call, nameOf(call), end));
  }
  return lanes;
}

function byRound(calls) {
  const rounds = new Map();
  for (const call of calls) {
    if (!rounds.has(call.round)) rounds.set(call.round, []);
    rounds.get(call.round).push(call);
  }
  return rounds;
}

const bar = (kind, from, to) => ({ kind, from, to: Math.max(from, to) });

function roundLane(round, end) {
  const until = round.ended ?? end;
  const running = round.ended === null;
  const streamed = round.first === null ? until : round.first;
  const bars = [bar("wait", round.began, streamed)];
  const said = [];
  const waited = words.seconds(streamed - round.began);
  if (round.first !== null && until > round.first) {
    bars.push(bar("stream", round.first, until));
    said.push(running
      ? `waited ${waited}, streaming for ${words.counting(until - streamed)}`
      : `waited ${waited}, streamed ${words.seconds(until - streamed)}`);
  } else said.push(running ? `waiting for ${words.counting(until - round.began)}` : `waited ${waited}`);
  const tokens = [
    round.input_tokens === null ? null : `${words.number(round.input_tokens)} tokens in`,
    round.output_tokens === null ? null : `${words.number(round.output_tokens)} out`,
  ].filter(Boolean);
  if (tokens.length) said.push(tokens.join(", "));
  if (round.kind) said.push(round.kind === "cancelled" ? "broken off" : round.kind);
  else if (round.finish_reason) said.push(words.finishWords(round.finish_reason));
  return {
    key: `round ${round.number}`,
    heading: `Round ${round.number}`,
    bars,
    words: ["model", ...said],
    error: round.kind !== "",
    running,
  };
}

function callLane(call, name, end) {
  const until = call.ended ?? end;
  const began = call.began ?? until;
  const bars = [];
  const said = [];
  // What is refused, or of no tool, has waited for none, and none ran: an edge alone is seen.
  const isRun = call.outcome !== "refused" && call.outcome !== "unknown";
  if (!isRun) bars.push(bar("tool", until, until));
  else if (began - call.asked >= WAITED || call.began === null) bars.push(bar("slot", call.asked, began));
  if (call.began !== null) bars.push(bar("tool", began, until));
  const waited = began - call.asked;
  if (call.began === null && call.ended === null) said.push(`waiting for a slot for ${words.counting(waited)}`);
  else {
    if (isRun && waited >= WAITED) said.push(`waited ${words.seconds(waited)} for a slot`);
    if (call.ended === null) said.push(`running for ${words.counting(until - began)}`);
    else if (call.began !== null) said.push(`ran ${words.seconds(until - began)}`);
    if (call.outcome) said.push(words.outcomeWords(call));
  }
  if (call.cut) said.push("its result was cut");
  return {
    key: `call ${call.number}`,
    bars,
    words: [name || "a tool without a name", ...said],
    state: words.stateOf(call),
    error: call.outcome !== "" && call.outcome !== "answered",
    running: call.ended === null,
  };
}

/** Whole steps of an axis that ends at *end*: at most *most* of them. */
export function ticks(end, most) {
  if (!(end > 0)) return [];
  const rough = end / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let i = 1; i * step < end * 0.96; i += 1) found.push(i * step);
  return found;
}

const tickWords = (value) =>
  value < 1 ? `${Math.round(value * 1e5) / 100} ms` : value < 120 ? `${Math.round(value * 100) / 100} s` : words.seconds(value);

/** Draws plans into an element of its own; bars that stay are moved, not made anew. */
export class Waterfall {
  #lanes = new Map();
  #ticks = "";

  constructor() {
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.grid = h("div", { class: "grid", "aria-hidden": "true" });
    this.list = h("ol", { class: "lanes" });
    this.more = h("p", { class: "note" });
    this.element = h("div", { class: "waterfall" }, this.axis, this.grid, this.list, this.more);
  }

  show(row, elapsed) {
    const lanes = plan(row, elapsed);
    const end = Math.max(elapsed, ...lanes.slice(0, MAX_LANES).flatMap((l) => l.bars.map((b) => b.to)), 1e-6);
    this.#showAxis(end, row.first_byte);
    const kept = new Set();
    for (const lane of lanes.slice(0, MAX_LANES)) {
      kept.add(lane.key);
      let shown = this.#lanes.get(lane.key);
      if (shown === undefined) {
        shown = new Lane(lane);
        this.#lanes.set(lane.key, shown);
      }
      if (this.list.children[kept.size - 1] !== shown.element) {
        this.list.insertBefore(shown.element, this.list.children[kept.size - 1] ?? null);
      }
      shown.show(lane, end);
    }
    for (const [key, lane] of this.#lanes) {
      if (kept.has(key)) continue;
      lane.element.remove();
      this.#lanes.delete(key);
    }
    setText(this.more, lanes.length > MAX_LANES ? `and ${lanes.length - MAX_LANES} more` : "");
  }

  #showAxis(end, firstByte) {
    const width = this.element.clientWidth || 600;
    const at = ticks(end, Math.max(2, Math.floor(width / 110)));
    const drawn = [end.toFixed(3), firstByte, width].join();
    if (drawn === this.#ticks) return;
    this.#ticks = drawn;
    const place = (element, seconds) => {
      element.style.left = `${(seconds / end) * 100}%`;
      return element;
    };
    fill(this.axis, h("span", { class: "tick start" }, "0"),
      at.map((value) => place(h("span", { class: "tick" }, tickWords(value)), value)));
    fill(this.grid, at.map((value) => place(h("span", { class: "line" }), value)),
      firstByte === null || firstByte > end ? null
        : place(h("span", { class: "line first-byte", title: "first byte sent" }), firstByte));
  }
}

/** A lane: its bars, and the words under them. */
class Lane {
  #words = "";
  #bars = [];

  constructor(lane) {
    this.track = h("div", { class: "track", "aria-hidden": "true" });
    this.words = h("p", { class: "words" });
    this.element = h(
      "li",
      {},
      lane.heading ? h("h4", { class: "round" }, lane.heading) : null,
      this.track,
      this.words,
    );
  }

  show(lane, end) {
    setAttribute(this.element, "class", [
      "lane",
      lane.heading ? "of-model" : "of-tool",
      lane.error ? "wrong" : "",
      lane.running ? "running" : "",
    ].filter(Boolean).join(" "));
    const kinds = lane.bars.map((each) => each.kind);
    if (kinds.join() !== this.#bars.map((each) => each.kind).join()) {
      this.#bars = kinds.map((kind) => ({ kind, element: h("span", { class: `bar ${kind}` }) }));
      fill(this.track, this.#bars.map((each) => each.element));
    }
    lane.bars.forEach((each, i) => {
      const { style } = this.#bars[i].element;
      style.left = `${(each.from / end) * 100}%`;
      style.width = `${((each.to - each.from) / end) * 100}%`;
    });
    const from = (lane.bars[0].from / end) * 100;
    const to = (lane.bars.at(-1).to / end) * 100;
    // The words begin below the bar, or end there if there is no room for them.
    const late = from > 50;
    this.words.classList.toggle("late", late);
    this.words.style.marginLeft = late ? "" : `${Math.max(0, from)}%`;
    this.words.style.marginRight = late ? `${Math.max(0, 100 - to)}%` : "";
    const text = lane.words.join(" · ");
    if (text === this.#words) return;
    this.#words = text;
    const [name, ...others] = lane.words;
    fill(
      this.words,
      lane.state ? dot(lane.state) : null,
      foreign(name, "name"),
      others.map((other, i) => [" · ", foreign(other, lane.error && i === others.length - 1 ? "what bad" : "what")]),
    );
  }
}
