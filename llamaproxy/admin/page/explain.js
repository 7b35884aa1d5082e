// Why an answer went as it did, in words.

import { foreign, h } from "./dom.js";
import * as words from "./words.js";

/** Names that are shown at once. */
const MAX_NAMES = 200;

function among(items) {
  return items.flatMap((item, i) =>
    i === 0 ? [item] : [i === items.length - 1 ? " and " : ", ", item]);
}

const toolName = (name) => foreign(name || "a tool without a name", "name");

/** What has happened, in a few sentences. */
export function story(row) {
  if (row.rounds.length === 0 && row.calls.length === 0) {
    if (row.status === 0) return ["The model has not been asked yet."];
    return row.model ? ["It ended before the model was asked."]
      : [`${row.method} `, foreign(row.path), `, answered with status ${row.status}.`];
  }
  const asked = [`The model was asked ${words.times(words.total(row.rounds))}`];
  const nameOf = words.namesOf(row.calls);
  const tools = new Map();
  for (const call of row.calls) {
    const key = JSON.stringify([call.group, call.tool]);
    tools.set(key, [nameOf(call), (tools.get(key)?.[1] ?? 0) + 1]);
  }
  if (tools.size === 0) {
    asked.push(row.status === 0 ? ", and has called no tool yet." : ", and called no tool.");
  } else {
    const named = [...tools.values()].slice(0, 6).map(([name, calls]) =>
      h("span", {}, toolName(name), calls > 1 ? ` (${words.times(calls)})` : null));
    if (tools.size > 6) named.push(`${tools.size - 6} more`);
    asked.push(` and made ${words.count(words.total(row.calls), "call")}: `, among(named), ".");
  }
  const bad = row.calls.filter((call) => call.outcome && call.outcome !== "answered");
  if (bad.length) {
    const named = bad.slice(0, 3).map((call) =>
      h("span", {}, toolName(nameOf(call)), " (", foreign(words.short(words.outcomeWords(call))), ")"));
    if (bad.length > 3) named.push(`${bad.length - 3} more`);
    asked.push(` ${words.count(bad.length, "call")} came to nothing: `, among(named), ".");
  }
  if (row.status === 0) asked.push(" ", now(row, nameOf));
  return asked;
}

function now(row, nameOf) {
  const open = row.calls.filter((call) => call.ended === null);
  const running = open.filter((call) => call.began !== null);
  const waiting = open.length - running.length;
  if (open.length) {
    return [
      running.length ? [`Now ${running.length === 1 ? "runs " : "run "}`,
        among(running.slice(0, 4).map((call) => toolName(nameOf(call)))),
        running.length > 4 ? ` and ${running.length - 4} more` : null, "."] : null,
      waiting ? ` ${words.count(waiting, "call waits", "calls wait")} for a slot.` : null,
    ];
  }
  const round = row.rounds.at(-1);
  if (round.ended === null) {
    return round.first === null ? ["It waits for the model."] : ["The model streams."];
  }
  return [];
}

/** The kind of an error and what else is known of it; the words may begin with the kind. */
function named(row) {
  const more = row.error.startsWith(row.kind) ? row.error.slice(row.kind.length).trim() : row.error;
  return [foreign(row.kind, "code"), more ? [more.startsWith("(") ? " " : ": ", foreign(more)] : null];
}

/** What has gone wrong, or stands out. */
export function notices(row) {
  const found = [];
  const say = (tone, title, ...sentence) =>
    found.push(h("p", { class: `notice ${tone}` }, h("strong", {}, title), " ", sentence));
  if (row.status === 499) {
    say("warn", "Broken off.", row.kind ? ["It ended with ", named(row), "."]
      : "The client left before the end, or the answer was cut off.");
  } else if (row.kind) {
    say("bad", `Error ${row.status || ""}`.trim(), named(row));
  } else if (row.status >= 400) {
    say("bad", `Error ${row.status}`, "The server’s own: it has refused the request.");
  }
  if (row.limit === "rounds") {
    say("warn", "A limit ended it.", "The model asked for tools in more rounds than an answer may have (", h("code", {}, "--max-iterations"), ").");
  } else if (row.limit === "repetition") {
    say("warn", "A limit ended it.", "The model made the same calls again and again.");
  } else if (row.limit) say("warn", "A limit ended it:", foreign(row.limit), ".");
  if (row.not_injected) {
    say("info", "No tools were offered:", foreign(row.not_injected), ".");
  } else if (row.offered === 0 && row.rounds.length > 0) {
    say("info", "No tools were offered:", "the server has none that fit, or they could not be listed. ",
      h("a", { href: "#/tools" }, "See the tools"), ".");
  }
  return found;
}

/** Seconds for the model, for tools and in the proxy itself: of what runs, until now. */
export function sharesAt(row, elapsed) {
  const { model, tools, proxy } = row.shares;
  const more = elapsed - model - tools - proxy;
  if (row.total !== null || more <= 0) return row.shares;
  // Since the row was made, nothing has begun and nothing ended in it.
  const calls = row.calls.some((call) => call.ended === null);
  if (calls || (row.rounds.length === 0 && row.listing > 0)) return { model, tools: tools + more, proxy };
  return row.rounds.length ? { model: model + more, tools, proxy } : row.shares;
}

/** For whom it waited, as words and as a bar: *shares* are the seconds. */
export function sharesOf(row, shares) {
  const parts = ["model", "tools", "proxy"];
  const shown = words.percents(parts.map((part) => shares[part]));
  if (shown === null) return [h("p", { class: "note" }, row.total === null ? "Not known yet." : "Known only of a chat that has waited.")];
  const bar = h("div", { class: "shares", "aria-hidden": "true" });
  parts.forEach((part, i) => {
    const piece = h("span", { class: `share ${part}` });
    piece.style.flexGrow = String(shown[i]); // below 1 together they would not fill the bar
    if (shown[i] > 0) bar.append(piece);
  });
  return [
    h("p", { class: "share-line" }, parts.map((part, i) => [
      i ? " · " : null, h("span", { class: "share-name" }, h("span", { class: `swatch ${part}` }), `${part} ${shown[i]} %`)])),
    bar,
    h("p", { class: "note" }, among(parts.map((part) => `${words.seconds(shares[part])} ${part === "proxy" ? "in the proxy itself" : part === "model" ? "for the model" : "for tools"}`)), "."),
  ];
}

/** The tools that the model could call, and why it could not call each other one. */
export function offeredTools(row, detail) {
  if (row.not_injected) {
    return [h("p", {}, "None, because ", foreign(row.not_injected), ".")];
  }
  const shown = [h("p", {}, row.offered === 0 ? "None." : `${words.count(row.offered, "tool")}.`)];
  if (detail === null) return shown;
  const called = new Set(detail.called);
  const names = [...detail.offered_tools].sort();
  names.sort((a, b) => called.has(b) - called.has(a));
  if (names.length) {
    shown.push(h("ul", { class: "chips" },
      names.slice(0, MAX_NAMES).map((name) => h("li", { class: called.has(name) ? "chip called" : "chip" },
        foreign(name), called.has(name) ? h("span", { class: "unseen" }, " (called)") : null)),
      names.length > MAX_NAMES ? h("li", {}, `and ${names.length - MAX_NAMES} more`) : null));
  }
  const reasons = new Map();
  for (const [name, why] of Object.entries(detail.withheld)) {
    if (!reasons.has(why)) reasons.set(why, []);
    reasons.get(why).push(name);
  }
  if (reasons.size) {
    shown.push(h("h4", {}, "Not offered"));
    const list = h("dl", { class: "withheld" });
    for (const [why, withheld] of reasons) {
      list.append(h("div", {},
        h("dt", {}, foreign(why)),
        h("dd", {}, h("ul", { class: "chips" },
          withheld.sort().slice(0, MAX_NAMES).map((name) => h("li", { class: "chip off" }, foreign(name))),
          withheld.length > MAX_NAMES ? h("li", {}, `and ${withheld.length - MAX_NAMES} more`) : null))));
    }
    shown.push(list);
  }
  return shown;
}

/** The rest of what is known. *showChat* is called with a conversation to filter by. */
export function facts(row, showChat) {
  const list = [];
  const add = (term, ...what) => list.push(h("div", {}, h("dt", {}, term), h("dd", {}, what)));
  const sum = (name) => {
    const known = row.rounds.map((round) => round[name]).filter((value) => value !== null);
    return known.length ? words.number(known.reduce((a, b) => a + b, 0)) : "not told";
  };
  add("Request", h("a", { href: `#${encodeURIComponent(row.id)}`, class: "code" }, foreign(row.id)));
  add("Sent to", foreign(`${row.method} ${row.path}`, "code"));
  add("Status", row.status === 0 ? "none yet" : String(row.status));
  add("Client", foreign(row.client || "unknown", "code"));
  add("Who", foreign(row.who || "without a key", row.who ? "code" : ""));
  if (row.conversation) {
    add("Chat", foreign(row.conversation, "code"), " ",
      h("button", { type: "button", class: "quiet", click: () => showChat(row.conversation) }, "Show only this chat"));
  }
  if (row.trace_id) add("Trace", foreign(row.trace_id, "code"));
  if (row.rounds.length) {
    add("Tokens", `${sum("input_tokens")} in, ${sum("output_tokens")} out`);
    const answering = [...new Set(row.rounds.map((round) => round.model).filter((name) => name && name !== row.model))];
    if (answering.length) add("Model that answered", foreign(answering.join(", ")));
  }
  if (row.status !== 0) add("Sent to the client", words.bytes(row.sent)); // counted at the end
  if (row.listing >= 0.001) add("Waited for the list of tools", words.seconds(row.listing));
  return list;
}
