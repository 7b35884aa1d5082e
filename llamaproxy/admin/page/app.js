// The page: who listens to what, what the address names, and the keyboard.

import { Answer } from "./answer.js";
import { byId, dot, fill, foreign, h, setAttribute, setText } from "./dom.js";
import { follow } from "./feed.js";
import { Filters } from "./filters.js";
import { List } from "./list.js";
import { Store } from "./store.js";
import { Tools } from "./tools.js";
import * as words from "./words.js";

const TOOLS = "#/tools";

/** Milliseconds between two showings of time that goes on, and between two spoken errors. */
const TICK = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 100;
const ALERT_PAUSE = 3000;

const store = new Store();
const filters = new Filters(byId("filters"), refilter);
const list = new List(byId("rows"), store, filters, openKey);
const answer = new Answer(byId("answer"), store, { close: closeAnswer, showChat });
const tools = new Tools(store);

/** The request that the address names, and whose answer has not come yet. */
let awaited = null;

// ---- what the address names

function route() {
  const { hash } = location;
  const onTools = hash === TOOLS;
  byId("answers").hidden = onTools;
  byId("tools").hidden = !onTools;
  setAttribute(byId("tab-answers"), "aria-current", onTools ? null : "page");
  setAttribute(byId("tab-tools"), "aria-current", onTools ? "page" : null);
  // Back to what was opened; from there, to the list.
  const last = answer.row?.id ?? awaited;
  setAttribute(byId("tab-answers"), "href", onTools && last !== null ? `#${encodeURIComponent(last)}` : "#/");
  if (onTools) return;
  awaited = requestIn(hash);
  if (awaited === null) showNothing();
  else if (answer.row?.id !== awaited) openAwaited();
  else awaited = null;
}

/** The id of the request that *hash* names, null if none. */
function requestIn(hash) {
  const name = hash.slice(1);
  if (name === "" || name === "/") return null;
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

function openAwaited() {
  const row = store.newest(awaited);
  if (row === undefined) {
    answer.close([`No answer to the request `, foreign(awaited, "code"), " is kept. Should it come, it opens here."]);
    list.markOpened(null);
    document.body.classList.add("answer-opened");
  } else {
    awaited = null;
    show(row);
  }
}

// ---- opening and closing

function show(row) {
  answer.open(row);
  list.markOpened(row.key);
  document.body.classList.add("answer-opened");
}

function openKey(key) {
  const row = store.rows.get(key);
  awaited = null;
  show(row);
  const hash = `#${encodeURIComponent(row.id)}`;
  if (location.hash !== hash) history.pushState(null, "", hash);
  byId("answer").focus({ preventScroll: true });
}

function showNothing() {
  answer.close();
  list.markOpened(null);
  document.body.classList.remove("answer-opened");
}

function closeAnswer() {
  if (answer.row === null && awaited === null) return;
  awaited = null;
  showNothing();
  history.pushState(null, "", "#/");
  list.focus();
}

function showChat(conversation) {
  filters.set("chat", conversation);
  if (byId("rows").offsetParent === null) closeAnswer(); // a narrow page: the list is a screen of its own
}

// ---- what is around the list

function refilter() {
  list.refilter();
  showCounts();
}

function showCounts() {
  const shown = list.shown;
  const all = store.rows.size;
  const running = [...store.rows.values()].filter((row) => row.status === 0).length;
  setText(byId("count"), [
    filters.active ? `${shown} of ${words.number(all)}` : words.number(all),
    running ? `${running} running` : null,
  ].filter(Boolean).join(", "));
  byId("clear-filters").hidden = !filters.active;
  const title = running ? `${running} running · llamaproxy` : "llamaproxy";
  if (document.title !== title) document.title = title;
  const empty = byId("empty");
  empty.hidden = shown > 0 || store.hello === null;
  if (empty.hidden) return;
  const kind = all > 0 ? "filtered" : "none";
  if (empty.dataset.kind === kind) return;
  empty.dataset.kind = kind;
  const { url } = store.hello;
  if (all > 0) fill(empty, h("p", {}, "No answer is as the filters ask for."));
  else {
    fill(empty, h("p", {}, h("strong", {}, "No answers yet.")),
      h("p", {}, "Send a chat ", url ? ["to ", foreign(url, "code")] : "to llamaproxy", ", with any OpenAI client; it appears here at once."),
      url ? h("pre", { class: "code", tabindex: "0", "aria-label": "Example" }, example(url)) : null);
  }
}

function example(url) {
  return [
    "curl -H 'Content-Type: application/json' \\",
    `  ${url}/chat/completions \\`,
    "  -d '{\"model\": \"MODEL\", \"messages\": [",
    "  {\"role\": \"user\", \"content\": \"Hello\"}]}'",
  ].join("\n");
}

function showHello() {
  const { hello } = store;
  setText(byId("version"), hello.version);
  fill(byId("upstream"), h("span", { class: "unseen" }, "Server: "),
    hello.server ? [foreign(hello.server, "server"), " at "] : null, foreign(hello.upstream, "code"));
}

function showConnection() {
  const { connection, draining } = store;
  setAttribute(byId("feed"), "data-state", connection);
  setText(byId("feed"), { connecting: "connecting", live: "live", lost: "lost" }[connection]);
  document.body.classList.toggle("stale", connection === "lost");
  const banner = byId("banner");
  banner.hidden = connection !== "lost" && draining === null;
  setText(banner, bannerWords(connection, draining));
}

function bannerWords(connection, draining) {
  if (connection === "lost") {
    const what = draining === null ? "The connection to llamaproxy has broken off." : "llamaproxy has stopped.";
    return `${what} What is shown is what was known then; the page connects again by itself.`;
  }
  if (draining === null) return "";
  return `llamaproxy is stopping: it takes no new chats, and waits up to ${words.number(draining.seconds)} s for those that run.`;
}

// ---- errors, spoken

let unspoken = [];
let speaking = null;
const seen = new Set();

function noteErrors(keys) {
  for (const key of keys) {
    const row = store.rows.get(key);
    if (row === undefined) seen.delete(key);
    else if (row.status === 0) seen.add(key);
    else if (seen.delete(key) && words.stateOfRow(row) === "error") unspoken.push(row);
  }
  if (unspoken.length && speaking === null) {
    speak();
    speaking = setTimeout(() => {
      speaking = null;
      if (unspoken.length) speak();
    }, ALERT_PAUSE);
  }
}

function speak() {
  const [row] = unspoken;
  setText(byId("alerts"), unspoken.length === 1
    ? `An answer ended in an error: ${row.model || row.path}, ${row.kind || `status ${row.status}`}`
    : `${unspoken.length} answers ended in errors`);
  unspoken = [];
}

// ---- changes, and time

store.listen(({ keys, all, parts }) => {
  if (parts.has("hello")) showHello();
  if (parts.has("connection")) showConnection();
  if (parts.has("tools")) tools.update();
  if (parts.has("rows") || parts.has("hello")) {
    list.update({ keys, all });
    filters.offer([...store.rows.values()].reverse());
    showCounts();
    noteErrors(keys);
    if (awaited !== null && byId("answers").hidden === false) openAwaited();
    else if (answer.row !== null && (all || keys.has(answer.row.key) || parts.has("hello"))) {
      answer.update();
      if (answer.gone) list.markOpened(null);
    }
  }
});

function tick() {
  if (!document.hidden && store.connection === "live") {
    list.tick();
    answer.tick();
  }
  setTimeout(() => requestAnimationFrame(tick), TICK);
}

// ---- the keyboard

function isTyping(target) {
  return target.closest("input, select, textarea") !== null;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape") {
    if (!byId("tools").hidden) {
      if (tools.isOpen) tools.close();
    } else if (isTyping(event.target) && event.target.closest("#answer") === null) list.focus();
    else closeAnswer();
    return;
  }
  if (byId("answers").hidden || isTyping(event.target)) return;
  const onList = event.target === byId("rows") || event.target === document.body;
  const steps = { j: 1, k: -1, ArrowDown: onList ? 1 : 0, ArrowUp: onList ? -1 : 0 }[event.key];
  if (steps) {
    list.move(steps);
    list.focus();
  } else if (onList && event.key === "Home") list.move(1, true);
  else if (onList && event.key === "End") list.move(Number.MAX_SAFE_INTEGER, false);
  else if (onList && event.key === "Enter") list.openCursor();
  else return;
  event.preventDefault();
});

// ---- begin

fill(byId("legend"), ["running", ...Object.keys(words.OUTCOMES)].map((state) =>
  h("li", {}, dot(state), state === "running" ? "running" : words.OUTCOMES[state])));
byId("clear-filters").addEventListener("click", () => filters.clear());
addEventListener("hashchange", route);
addEventListener("popstate", route);
new ResizeObserver(() => answer.resized()).observe(byId("answer"));
setInterval(() => tools.tick(), 5000);
route();
tick();
follow(store);
