// Which answers are shown: by model, tool, outcome and chat.

import { fill, h } from "./dom.js";
import { ROW_STATES, stateOfRow } from "./words.js";

/** Choices that one filter offers. */
const MAX_CHOICES = 100;

const FAILED_TOOL = "tool-failed";
const NO_TOOLS = "no-tools";

const OUTCOMES = {
  running: ROW_STATES.running,
  ok: "answered",
  error: ROW_STATES.error,
  left: ROW_STATES.left,
  [FAILED_TOOL]: "a tool failed",
  [NO_TOOLS]: "no tools offered",
};

function hasOutcome(row, outcome) {
  if (outcome === FAILED_TOOL) return row.calls.some((c) => c.outcome && c.outcome !== "answered");
  if (outcome === NO_TOOLS) return row.offered === 0;
  const state = stateOfRow(row);
  return outcome === "ok" ? state === "well" || state === "troubled" : state === outcome;
}

const KINDS = {
  model: { label: "Model", values: (row) => [row.model] },
  tool: { label: "Tool", values: (row) => row.calls.map((call) => call.tool) },
  outcome: { label: "Outcome", values: () => [] },
  chat: { label: "Chat", values: (row) => [row.conversation] },
};

export class Filters {
  #selects = {};
  #onChange;

  /** *form* is filled with them; *onChange* is called when one is set. */
  constructor(form, onChange) {
    this.#onChange = onChange;
    for (const [kind, { label }] of Object.entries(KINDS)) {
      const select = h("select", { id: `filter-${kind}`, change: onChange }, h("option", { value: "" }, "any"));
      if (kind === "outcome") {
        for (const [value, words] of Object.entries(OUTCOMES)) {
          select.append(h("option", { value }, words));
        }
      }
      this.#selects[kind] = select;
      form.append(h("div", { class: "field" }, h("label", { for: select.id }, label), select));
    }
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  get active() {
    return Object.values(this.#selects).some((select) => select.value !== "");
  }

  clear() {
    for (const select of Object.values(this.#selects)) select.value = "";
    this.#onChange();
  }

  set(kind, value) {
    const select = this.#selects[kind];
    if (![...select.options].some((option) => option.value === value)) {
      select.append(h("option", { value }, value));
    }
    select.value = value;
    this.#onChange();
  }

  /** Whether *row* is shown. */
  admits(row) {
    for (const [kind, select] of Object.entries(this.#selects)) {
      const wanted = select.value;
      if (wanted === "") continue;
      const has = kind === "outcome" ? hasOutcome(row, wanted) : KINDS[kind].values(row).includes(wanted);
      if (!has) return false;
    }
    return true;
  }

  /** Offer what there is in *rows*, newest first; what is chosen stays on offer. */
  offer(rows) {
    for (const [kind, select] of Object.entries(this.#selects)) {
      if (kind === "outcome" || select === document.activeElement) continue;
      const values = new Set(select.value === "" ? [] : [select.value]);
      for (const row of rows) {
        for (const value of KINDS[kind].values(row)) {
          if (value !== "" && values.size < MAX_CHOICES) values.add(value);
        }
      }
      const sorted = kind === "chat" ? [...values] : [...values].sort();
      const offered = [...select.options].slice(1).map((option) => option.value);
      if (offered.length === sorted.length && offered.every((value, i) => value === sorted[i])) continue;
      const chosen = select.value;
      fill(select, select.options[0], sorted.map((value) => h("option", { value }, value)));
      select.value = chosen;
    }
  }
}
