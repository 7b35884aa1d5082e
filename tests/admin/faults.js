() => {
  const faults = [];
  const named = (e) => (e.getAttribute("aria-label") ?? "").trim() || e.textContent.trim()
    || [...e.labels ?? []].some((label) => label.textContent.trim());
  for (const e of document.querySelectorAll("button, a, select, textarea, input, [role=listbox], section")) {
    if (e.localName === "section" && !e.hasAttribute("aria-label") && !e.hasAttribute("aria-labelledby")) continue;
    if (e.localName === "select" ? !e.labels?.length : !named(e) && !e.hasAttribute("aria-labelledby")) {
      faults.push("no name: " + e.outerHTML.slice(0, 200));
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) {
    if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push("twice: " + id);
  }
  for (const e of document.querySelectorAll("[aria-describedby], [aria-labelledby], [aria-activedescendant], label[for]")) {
    const names = ["aria-describedby", "aria-labelledby", "aria-activedescendant", "for"];
    for (const id of names.flatMap((name) => (e.getAttribute(name) ?? "").split(" ")).filter(Boolean)) {
      if (!document.getElementById(id)) faults.push("nothing is called " + id);
    }
  }
  for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) faults.push("no alt");
  let level = 0;
  for (const e of document.querySelectorAll("h1, h2, h3, h4, h5")) {
    if (!e.checkVisibility()) continue;
    if (Number(e.localName[1]) > level + 1) faults.push("heading skips: " + e.textContent);
    level = Number(e.localName[1]);
  }
  for (const e of document.querySelectorAll("[tabindex]")) if (e.tabIndex > 0) faults.push("tab order");
  if (!document.documentElement.lang) faults.push("no language");
  return faults;
}
