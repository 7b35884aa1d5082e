// Elements, made without any HTML: all text is text, whoever wrote it.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element.
 * @param {string} tag its name
 * @param {object} attributes by name; those that are null, undefined or false are left out, a
 *     function is the listener of the event of its name
 * @param {...(Node|string|number|null|Array)} children put into it; text as text
 */
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value);
    }
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined);
}

/** Text of a stranger's: what it says of its direction stays within it. */
export function foreign(text, className) {
  return h("bdi", { class: className }, String(text));
}

/** A tool's outcome, told by shape and colour. */
export function dot(state, title) {
  return h("i", { class: `dot ${state}`, title });
}

/** Put *children* into *element*, instead of what is in it. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
}

/** Set the text of *element*, untouched if it is the same. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set an attribute, untouched if it is the same; null removes it. */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export const byId = (id) => document.getElementById(id);

const PATHS = {
  back: "M10 3 5 8l5 5",
  stop: "M4 4h8v8H4z",
  copy: "M5 5V3h8v8h-2M3 5h8v8H3z",
  download: "M8 2v8M4.5 7 8 10.5 11.5 7M3 13.5h10",
  run: "M5 3v10l8-5z",
};

/** A drawing that says nothing to those who cannot see it. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
