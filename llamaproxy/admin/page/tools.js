// The tools page: groups, their tools, how calls of each have gone, and one tool to look at and try.

import * as api from "./api.js";
import { text } from "./contents.js";
import { byId, dot, fill, foreign, h, icon, setAttribute, setText } from "./dom.js";
import { ToolForm } from "./toolform.js";
import * as words from "./words.js";

const keyOf = (group, tool) => JSON.stringify([group, tool]);

export class Tools {
  #store;
  #box = byId("groups");
  #pane = byId("tool");
  #find = byId("find-tool");
  #opened = null; // the key of the tool
  #figures = null;
  #schema = "";

  constructor(store) {
    this.#store = store;
    this.#find.addEventListener("input", () => this.update());
    this.#box.addEventListener("keydown", (event) => this.#move(event));
    this.close();
  }

  get isOpen() {
    return this.#opened !== null;
  }

  update() {
    const { tools } = this.#store;
    if (tools === null) return;
    const focused = document.activeElement?.dataset?.tool;
    fill(this.#box, this.#notes(tools), tools.groups.map((group) => this.#group(group)));
    if (focused !== undefined) this.#button(focused)?.focus({ preventScroll: true });
    const number = tools.groups.reduce((sum, group) => sum + group.tools.length, 0);
    setText(byId("tools-count"), `${words.count(number, "tool")} in ${words.count(tools.groups.length, "group")}`);
    const broken = (tools.error === null ? 0 : 1) + tools.groups.filter((group) => group.error !== null).length;
    const badge = byId("tools-badge");
    badge.hidden = broken === 0;
    fill(badge, h("span", { "aria-hidden": "true" }, "!"), h("span", { class: "unseen" }, `, ${words.count(broken, "problem")}`));
    if (this.#opened !== null) this.#showOpened();
  }

  close() {
    const was = this.#opened;
    this.#opened = null;
    fill(this.#pane, h("div", { class: "empty" }, this.#backButton(),
      h("p", {}, "Choose a tool to see its arguments, how its calls have gone, and to try it.")));
    document.body.classList.remove("tool-opened");
    if (was !== null) {
      this.#mark();
      this.#button(was)?.focus({ preventScroll: true });
    }
  }

  #notes(tools) {
    return [
      tools.error === null ? null
        : h("p", { class: "notice bad" }, h("strong", {}, "The groups cannot be listed:"), " ", foreign(tools.error)),
      tools.left_out.length === 0 ? null
        : h("p", { class: "notice warn" }, h("strong", {}, "No room for all:"), " ",
          words.count(tools.left_out.length, "tool"), " not offered (", h("code", {}, "--max-tools"), ", ", h("code", {}, "--max-tool-list"), "): ",
          foreign(tools.left_out.slice(0, 20).join(", "))),
      tools.groups.length === 0 && tools.error === null
        ? h("div", { class: "empty" }, h("p", {}, h("strong", {}, "No tool groups are known yet."), " They are listed when the first chat comes, or the server has none: register one there, then look again.")) : null,
    ];
  }

  #group(group) {
    const wanted = this.#find.value.trim().toLowerCase();
    const shown = group.tools.filter((tool) =>
      wanted === "" || `${group.name} ${tool.name} ${tool.title ?? ""} ${tool.description ?? ""}`.toLowerCase().includes(wanted));
    if (wanted !== "" && shown.length === 0) return null;
    return h("section", { class: "group" },
      h("header", { class: "group-head" },
        h("h3", {}, foreign(group.name)),
        h("span", { class: "origin" }, foreign(originOf(group))),
        h("p", { class: "note" }, group.url ? [foreign(group.url, "code"), " · "] : null,
          group.listed_at === null ? "never listed" : ["listed ", this.#age(group.listed_at)])),
      group.instructions
        ? h("p", { class: "note" }, "How to use them, it says: ", foreign(words.beginning(group.instructions, 400))) : null,
      group.error === null ? null
        : h("p", { class: "notice bad" }, h("strong", {}, "It cannot be listed:"), " ", foreign(group.error),
          group.error_at === null ? null : [" (", this.#age(group.error_at), ")"]),
      shown.length === 0 ? (group.error === null ? h("p", { class: "note" }, "It has no tools.") : null)
        : h("ul", { class: "tools" }, shown.map((tool) => this.#tool(group, tool))));
  }

  #tool(group, tool) {
    const key = keyOf(group.name, tool.name);
    return h("li", {}, h("button", {
      type: "button", class: "tool", "data-tool": key, "aria-pressed": String(key === this.#opened),
      click: () => this.#open(key),
    },
    foreign(tool.name, "name"),
    h("span", { class: "figure" }, tool.calls === 0 ? "not called" : words.count(tool.calls, "call")),
    h("span", { class: tool.failed ? "figure bad" : "figure" }, tool.failed ? `${errorRate(tool)} errors` : ""),
    h("span", { class: "figure" }, tool.mean_seconds === null || tool.calls === 0 ? "" : words.seconds(tool.mean_seconds))));
  }

  #age(unix) {
    return h("span", { "data-since": String(unix) }, words.ago(this.#store.now() - unix));
  }

  /** Let ages grow. */
  tick() {
    for (const element of document.querySelectorAll("[data-since]")) {
      setText(element, words.ago(this.#store.now() - Number(element.dataset.since)));
    }
  }

  #button(key) {
    return [...this.#box.querySelectorAll("button.tool")].find((button) => button.dataset.tool === key);
  }

  #mark() {
    for (const button of this.#box.querySelectorAll("button.tool")) {
      setAttribute(button, "aria-pressed", String(button.dataset.tool === this.#opened));
    }
  }

  #move(event) {
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const buttons = [...this.#box.querySelectorAll("button.tool")];
    const at = buttons.indexOf(document.activeElement);
    if (at < 0) return;
    event.preventDefault();
    buttons[at + step]?.focus();
  }

  #found() {
    for (const group of this.#store.tools?.groups ?? []) {
      for (const tool of group.tools) {
        if (keyOf(group.name, tool.name) === this.#opened) return { group, tool };
      }
    }
    return null;
  }

  #open(key) {
    this.#opened = key;
    this.#schema = "";
    this.#figures = null;
    document.body.classList.add("tool-opened");
    this.#mark();
    this.#showOpened();
    this.#pane.scrollTop = 0;
    this.#pane.focus({ preventScroll: true });
  }

  /** Figures are shown anew; the form stays as it is filled in while the tool is the same. */
  #showOpened() {
    const found = this.#found();
    if (found === null) {
      if (this.#figures !== null) {
        fill(this.#figures, h("p", { class: "notice warn" }, "The server lists this tool no longer."));
      }
      return;
    }
    const schema = JSON.stringify([found.tool.title, found.tool.description, found.tool.parameters, found.tool.annotations]);
    if (schema !== this.#schema || this.#figures === null) {
      this.#schema = schema;
      this.#build(found);
    }
    fill(this.#figures, figuresOf(found));
  }

  #backButton() {
    return h("button", { type: "button", class: "back", click: () => this.close() }, icon("back"), "All tools");
  }

  #build({ group, tool }) {
    this.#figures = h("div", {});
    const form = new ToolForm(tool.parameters ?? null);
    const button = h("button", { class: "primary" }, icon("run"), "Run it");
    const result = h("div", { class: "result", role: "status" });
    const run = async (event) => {
      event.preventDefault();
      const args = form.text();
      if (args === null) return;
      button.disabled = true;
      fill(result, h("p", { class: "note" }, "It runs."));
      try {
        fill(result, resultOf(await api.tryTool(group.name, tool.name, args)));
      } catch (error) {
        fill(result, h("p", { class: "notice bad" }, h("strong", {}, "It was not run:"), " ", foreign(error.message)));
      }
      button.disabled = false;
    };
    fill(
      this.#pane,
      this.#backButton(),
      h("header", { class: "answer-head" }, h("div", { class: "names" },
        h("h2", {}, foreign(tool.name, "title")),
        h("p", { class: "note" }, tool.title ? [foreign(tool.title), ", "] : null, "of the group ", foreign(group.name),
          tool.offered_as && tool.offered_as !== tool.name ? [" · offered as ", foreign(tool.offered_as, "name")] : null, hintsOf(tool.annotations)))),
      tool.description ? h("p", { class: "story", dir: "auto" }, tool.description) : null,
      this.#figures,
      h("section", { class: "card" }, h("h3", {}, "Try this tool"),
        h("p", { class: "note" }, "It really runs, once, with nobody’s credentials."),
        h("form", { novalidate: true, submit: run, class: "try" }, form.element, button), result),
      h("section", { class: "card" }, h("h3", {}, "Schema of its arguments"),
        tool.parameters ? text(tool.parameters) : h("p", { class: "note" }, "It is not known.")),
    );
  }
}

function originOf({ origin }) {
  if (origin === "mcp") return "MCP, called by the proxy";
  return origin || "run by the server";
}

const errorRate = (tool) => `${Math.round((tool.failed / tool.calls) * 1000) / 10} %`;

function figuresOf({ group, tool }) {
  const figure = (term, value, bad = false) =>
    h("div", {}, h("dt", {}, term), h("dd", { class: bad ? "bad" : null }, value));
  return [
    h("dl", { class: "figures" },
      figure("Calls", words.number(tool.calls)),
      figure("Errors", tool.calls === 0 ? "–" : `${errorRate(tool)} (${words.number(tool.failed)})`, tool.failed > 0),
      figure("Mean time", tool.calls === 0 ? "–" : words.seconds(tool.mean_seconds)),
      figure("Origin", foreign(originOf(group)))),
    tool.last_error ? h("p", { class: "notice bad" }, h("strong", {}, "Last error:"), " ", foreign(tool.last_error)) : null,
  ];
}

/** What the tool's own server says of it. */
function hintsOf(annotations) {
  const hints = {
    readOnlyHint: "it only reads",
    destructiveHint: "it may destroy",
    idempotentHint: "it may be repeated",
    openWorldHint: "it reaches the outside",
  };
  const said = Object.entries(hints).filter(([name]) => annotations?.[name] === true).map(([, hint]) => hint);
  return said.length ? ` · says of itself: ${said.join(", ")}` : null;
}

function resultOf({ outcome, seconds, text: said, is_error: isError }) {
  const state = Object.hasOwn(words.OUTCOMES, outcome) ? outcome : "failed";
  return [
    h("p", { class: isError || outcome !== "answered" ? "outcome bad" : "outcome" }, dot(state), " ",
      h("strong", {}, words.OUTCOMES[state]), ` in ${words.seconds(seconds)}`,
      isError ? ": the tool says that it failed" : null),
    said === "" ? h("p", { class: "note" }, "It said nothing.") : text(said),
  ];
}
