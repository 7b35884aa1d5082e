// Messages, arguments and results, where the proxy keeps them.

import { fill, foreign, h } from "./dom.js";
import * as words from "./words.js";

/** Characters of one text that are shown; all of it can be downloaded. */
const MAX_SHOWN = 20000;

export function contentsOf(row, detail) {
  if (detail === null) return [h("p", { class: "note" }, "Asking for them.")];
  if (detail.contents === null) {
    return [h("p", {}, "Messages, arguments and results are not kept. Start llamaproxy with ",
      h("code", {}, "--inspect-contents"), " to see those of the answers that follow: they are kept in memory only, without credentials.")];
  }
  const { rounds, calls, cut } = detail.contents;
  const shown = [];
  if (cut) shown.push(h("p", { class: "notice info" }, "Some of it was too large to be kept whole."));
  const nameOf = words.namesOf(row.calls);
  for (const round of row.rounds) {
    const content = rounds[round.number];
    if (content === undefined) continue;
    if (content.request !== undefined) {
      shown.push(fold(`${round.number} request`, `Round ${round.number}: what the model was sent`,
        () => requestOf(content.request)));
    }
    if (content.answer !== undefined) {
      shown.push(fold(`${round.number} answer`, `Round ${round.number}: what it answered`,
        () => answerOf(content.answer)));
    }
    for (const call of row.calls) {
      const written = calls[call.number];
      if (call.round !== round.number || written === undefined) continue;
      shown.push(fold(`call ${call.number}`, ["Call of ", foreign(nameOf(call), "name")], () => [
        h("h4", { class: "part" }, "Arguments"), text(indented(written.arguments)),
        h("h4", { class: "part" }, "Result"), written.result === undefined ? h("p", { class: "note" }, "None.") : text(written.result),
      ]));
    }
  }
  if (shown.length === 0) shown.push(h("p", { class: "note" }, "Nothing was kept of this answer."));
  return shown;
}

/** A part that is made when it is first opened: it may be large. */
function fold(key, title, make) {
  const folded = h("div", { class: "folded" });
  const open = () => folded.hasChildNodes() || fill(folded, make());
  return h("details", { "data-key": key, toggle: open }, h("summary", {}, title), folded);
}

/** A text as it was written, cut if it is very long. */
export function text(value) {
  const whole = typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "";
  const rest = whole.length - MAX_SHOWN;
  return [
    h("pre", { class: "code", dir: "auto", tabindex: "0" }, whole.slice(0, MAX_SHOWN)),
    rest > 0 ? h("p", { class: "note" }, `and ${words.count(rest, "more character")}: download the JSON to see all of it.`) : null,
  ];
}

/** JSON text with its members on lines of their own; other text as it is. */
function indented(value) {
  try {
    return JSON.stringify(JSON.parse(value), null, 2);
  } catch {
    return value ?? "";
  }
}

function requestOf(request) {
  const messages = Array.isArray(request?.messages) ? request.messages : [];
  const { messages: _, ...others } = Object(request);
  return [messages.map(message), h("h4", { class: "part" }, "All else that was sent"), text(others)];
}

function answerOf(answer) {
  const said = answer?.choices?.[0]?.message;
  return said ? [message(said), h("h4", { class: "part" }, "All of it"), text(answer)] : text(answer);
}

function message(said) {
  const { role, content, tool_calls: calls } = Object(said);
  const parts = [];
  if (typeof content === "string" && content !== "") parts.push(text(content));
  else if (content !== null && content !== undefined && content !== "") parts.push(text(content));
  for (const call of Array.isArray(calls) ? calls : []) {
    const { name, arguments: given } = Object(call?.function);
    parts.push(h("p", {}, "calls ", foreign(name ?? "?", "name")), text(given ?? ""));
  }
  return h("div", { class: "message" }, h("h4", { class: "part" }, foreign(role ?? "message")), parts);
}
