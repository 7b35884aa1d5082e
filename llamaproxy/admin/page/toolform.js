// A form made from a JSON schema, and the JSON text of what was filled in.

import { foreign, h, setAttribute, setText } from "./dom.js";

/** Fields that a form has; what has more is written as JSON. */
const MAX_FIELDS = 60;
const MAX_CHOICES = 500;

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * What *schema* is of, as far as a form can show it: references followed, null left out.
 * @returns {object} a schema
 */
export function plain(schema, root, depth = 0) {
  if (!isObject(schema) || depth > 8) return {};
  if (typeof schema.$ref === "string") {
    const { $ref, ...others } = schema;
    return { ...plain(lookUp($ref, root), root, depth + 1), ...others };
  }
  for (const word of ["anyOf", "oneOf", "allOf"]) {
    if (!Array.isArray(schema[word])) continue;
    const choices = schema[word].filter((choice) => choice?.type !== "null");
    if (choices.length !== 1) continue;
    const { [word]: _, ...others } = schema;
    return { ...plain(choices[0], root, depth + 1), ...others };
  }
  if (Array.isArray(schema.type)) {
    const types = schema.type.filter((type) => type !== "null");
    return { ...schema, type: types.length === 1 ? types[0] : undefined };
  }
  return schema;
}

function lookUp(reference, root) {
  if (!reference.startsWith("#/")) return {};
  let found = root;
  for (const part of reference.slice(2).split("/")) {
    const name = part.replaceAll("~1", "/").replaceAll("~0", "~");
    if (!isObject(found) || !Object.hasOwn(found, name)) return {};
    found = found[name];
  }
  return found;
}

function parsed(text) {
  try {
    return { value: JSON.parse(text) };
  } catch (error) {
    return { error: error.message };
  }
}

/** One field: its element, and text() with the JSON text of its value, "" for none; it throws an
 *  Error with the words for a person if there is no such text. */
class Field {
  constructor(name, schema, required, id) {
    this.name = name;
    this.schema = schema;
    this.required = required;
    this.control = this.#control();
    this.error = h("p", { class: "field-error", id: `${id}-error` });
    const hint = typeof schema.description === "string" ? schema.description : "";
    const hintElement = hint ? h("p", { class: "hint", id: `${id}-hint` }, foreign(hint)) : null;
    setAttribute(this.control, "id", id);
    setAttribute(this.control, "aria-describedby", `${hint ? `${id}-hint ` : ""}${id}-error`);
    if (required) setAttribute(this.control, "aria-required", "true");
    this.element = h("div", { class: "form-field" },
      h("label", { for: id }, foreign(name, "name"), " ", h("span", { class: "type" }, foreign(this.#typeWords())),
        required ? [" ", h("span", { class: "required" }, "required")] : null),
      this.control, hintElement, this.error);
  }

  get #kind() {
    const { schema } = this;
    if (Array.isArray(schema.enum) && schema.enum.length <= MAX_CHOICES) return "enum";
    if ("const" in schema) return "enum";
    return ["string", "integer", "number", "boolean"].includes(schema.type) ? schema.type : "json";
  }

  #typeWords() {
    const kind = this.#kind;
    if (kind === "enum") return "one of a list";
    return kind === "json" ? `${typeof this.schema.type === "string" ? this.schema.type : "any"}, as JSON` : kind;
  }

  #control() {
    const { schema } = this;
    const preset = schema.default;
    const kind = this.#kind;
    if (kind === "enum" || kind === "boolean") {
      const choices = kind === "boolean" ? [true, false] : schema.enum ?? [schema.const];
      this.choices = choices.map((choice) => JSON.stringify(choice));
      const select = h("select", {},
        h("option", { value: "" }, this.required ? "choose" : "not given"),
        choices.map((choice, i) => h("option", { value: String(i) },
          typeof choice === "string" ? choice : JSON.stringify(choice))));
      const at = preset === undefined ? -1 : this.choices.indexOf(JSON.stringify(preset));
      if (at >= 0) select.value = String(at);
      return select;
    }
    if (kind === "json") {
      const area = h("textarea", { class: "code", rows: 3, spellcheck: "false",
        placeholder: schema.type === "array" ? "[]" : schema.type === "object" ? "{}" : "null" });
      if (preset !== undefined && preset !== null) area.value = JSON.stringify(preset, null, 2);
      return area;
    }
    const isText = kind === "string";
    const control = isText
      ? h("textarea", { rows: 1, dir: "auto", spellcheck: "false" })
      : h("input", { type: "text", inputmode: kind === "integer" ? "numeric" : "decimal", autocomplete: "off" });
    if (preset !== undefined && preset !== null) control.value = String(preset);
    return control;
  }

  text() {
    const { value } = this.control;
    const kind = this.#kind;
    if (value.trim() === "") {
      if (kind === "string" && value !== "") return JSON.stringify(value);
      if (this.required) throw new Error("A value is needed.");
      return "";
    }
    if (kind === "enum" || kind === "boolean") return this.choices[Number(value)];
    if (kind === "string") return JSON.stringify(value);
    const text = value.trim();
    const { value: read, error } = parsed(text);
    if (kind === "json") {
      if (error !== undefined) throw new Error(`This is no JSON: ${error}`);
      if (this.schema.type === "array" && !Array.isArray(read)) throw new Error("A JSON array is needed: [ … ]");
      if (this.schema.type === "object" && !isObject(read)) throw new Error("A JSON object is needed: { … }");
      return text;
    }
    if (typeof read !== "number") throw new Error("A number is needed.");
    if (kind === "integer" && !Number.isInteger(read)) throw new Error("A whole number is needed.");
    return text;
  }

  /** Show *words* as its error, "" for none. */
  mark(words) {
    setText(this.error, words);
    setAttribute(this.control, "aria-invalid", words ? "true" : null);
  }
}

/** The form of one tool. */
export class ToolForm {
  #fields = [];
  #raw;
  #rawError;
  #byFields;
  #byText;
  #modes;
  #written = false;

  constructor(parameters) {
    const schema = plain(parameters, parameters);
    const properties = isObject(schema.properties) ? Object.entries(schema.properties) : [];
    const required = Array.isArray(schema.required) ? schema.required : [];
    const fits = parameters !== null && properties.length <= MAX_FIELDS;
    if (fits) {
      this.#fields = properties.map(([name, property], i) =>
        new Field(name, plain(property, parameters), required.includes(name), `argument-${i}`));
    }
    this.#raw = h("textarea", { class: "code", rows: 8, spellcheck: "false", id: "arguments-json",
      "aria-describedby": "arguments-json-error" });
    this.#rawError = h("p", { class: "field-error", id: "arguments-json-error" });
    this.#byFields = h("div", { class: "fields" }, this.#fields.length ? this.#fields.map((f) => f.element)
      : h("p", { class: "note" }, "It takes no arguments."));
    this.#byText = h("div", { class: "form-field", hidden: true },
      h("label", { for: "arguments-json" }, "Arguments, a JSON object"), this.#raw, this.#rawError);
    const mode = (value, words, checked) => h("label", { class: "mode" },
      h("input", { type: "radio", name: "mode", value, checked, change: () => this.#switch(value) }), words);
    this.#modes = h("fieldset", { class: "modes" }, h("legend", { class: "unseen" }, "How the arguments are written"),
      mode("form", "Form", true), mode("json", "JSON", false));
    this.element = h("div", {}, this.#modes, this.#byFields, this.#byText);
    if (!fits) {
      this.#raw.value = "{}";
      this.#modes.hidden = true;
      this.#show(true);
    }
  }

  /** The JSON text of the arguments; null if something is wrong, which is then shown. */
  text() {
    if (this.#written) {
      const { value, error } = parsed(this.#raw.value);
      const words = error !== undefined ? `This is no JSON: ${error}` : isObject(value) ? "" : "A JSON object is needed: { … }";
      setText(this.#rawError, words);
      setAttribute(this.#raw, "aria-invalid", words ? "true" : null);
      if (words) this.#raw.focus();
      return words ? null : this.#raw.value;
    }
    const { members, wrong } = this.#members();
    for (const field of this.#fields) field.mark(wrong.get(field) ?? "");
    if (wrong.size) [...wrong.keys()][0].control.focus();
    return wrong.size ? null : `{${members.join(",")}}`;
  }

  #members() {
    const members = [];
    const wrong = new Map();
    for (const field of this.#fields) {
      try {
        const text = field.text();
        if (text !== "") members.push(`${JSON.stringify(field.name)}: ${text}`);
      } catch (error) {
        wrong.set(field, error.message);
      }
    }
    return { members, wrong };
  }

  #switch(mode) {
    if (mode === "json") {
      // As it was typed: a number in JavaScript has 16 digits.
      const { members } = this.#members();
      this.#raw.value = members.length ? `{\n  ${members.join(",\n  ")}\n}` : "{}";
    }
    this.#show(mode === "json");
  }

  #show(written) {
    this.#written = written;
    this.#byFields.hidden = written;
    this.#byText.hidden = !written;
  }
}
