// Copying text, also where the browser has no clipboard for pages that come without TLS.

import { h } from "./dom.js";

/** Copy *text*. Whether that was possible. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text);
  }
}

function copySelected(text) {
  const focused = document.activeElement;
  const area = h("textarea", { class: "unseen", readonly: true, "aria-label": "Text to copy" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}
