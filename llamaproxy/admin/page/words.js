// Figures and outcomes as words.

/** Seconds, as short as they can be read; a dash if they are not known. */
export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const positive = Math.max(0, value);
  if (positive < 0.9995) return `${Math.round(positive * 1000)} ms`;
  if (positive < 9.995) return `${positive.toFixed(2)} s`;
  if (positive < 59.95) return `${positive.toFixed(1)} s`;
  const whole = Math.round(positive);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(positive / 60);
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Seconds of what goes on: whole tenths, which do not flicker. */
export function counting(value) {
  return value < 60 ? `${Math.max(0, value).toFixed(1)} s` : seconds(value);
}

const CLOCK = new Intl.DateTimeFormat("en", {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
const DAY = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric" });

export const clock = (unix) => CLOCK.format(unix * 1000);
export const day = (unix) => DAY.format(unix * 1000);

/** How long ago, in one unit. */
export function ago(value) {
  if (value < 5) return "just now";
  if (value < 100) return `${Math.round(value)} s ago`;
  if (value < 6000) return `${Math.round(value / 60)} min ago`;
  return `${Math.round(value / 3600)} h ago`;
}

const COUNT = new Intl.NumberFormat("en");

export const count = (number, one, many = `${one}s`) =>
  `${COUNT.format(number)} ${number === 1 ? one : many}`;

export const number = (value) => COUNT.format(value);

export function bytes(value) {
  if (value < 1000) return `${value} bytes`;
  const [size, unit] = value < 1e6 ? [value / 1e3, "kB"] : [value / 1e6, "MB"];
  return `${size.toFixed(size < 10 ? 1 : 0)} ${unit}`;
}

export const times = (number) =>
  number === 1 ? "once" : number === 2 ? "twice" : `${COUNT.format(number)} times`;

/** Shares of one whole as whole per cents, whose sum is 100; null if there is nothing to share. */
export function percents(values) {
  const whole = values.reduce((sum, value) => sum + value, 0);
  if (!(whole > 0)) return null;
  const exact = values.map((value) => (value / whole) * 100);
  const shown = exact.map(Math.floor);
  let left = 100 - shown.reduce((sum, value) => sum + value, 0);
  const largest = exact.map((value, i) => [value - shown[i], i]).sort((a, b) => b[0] - a[0]);
  for (const [, i] of largest) if (left-- > 0) shown[i] += 1;
  return shown;
}

/** Outcomes of calls, in the order of the legend, as words. */
export const OUTCOMES = {
  answered: "answered",
  failed: "failed",
  timeout: "timed out",
  refused: "refused",
  unknown: "no such tool",
  cancelled: "cancelled",
};

/** How many rounds or calls there were: of many, the feed tells the last alone. */
export const total = (parts) => parts.at(-1)?.number ?? 0;

/** What has become of a call: the class of its dot. */
export function stateOf(call) {
  if (call.outcome) return Object.hasOwn(OUTCOMES, call.outcome) ? call.outcome : "failed";
  return call.began === null ? "waiting" : "running";
}

export function outcomeWords(call) {
  const words = { waiting: "waiting for a slot", running: "running", ...OUTCOMES };
  const why = call.outcome && call.outcome !== "answered" ? call.reason : "";
  return words[stateOf(call)] + (why ? `: ${why}` : "");
}

/** A name of a stranger's, for use within a sentence. */
export const beginning = (text, length) => (text.length > length ? `${text.slice(0, length)}…` : text);
export const short = (name) => (name.length > 50 ? `${name.slice(0, 48)}…` : name);

/** What has become of an answer: the class of its row. */
export function stateOfRow(row) {
  if (row.status === 0) return "running";
  if (row.status === 499) return "left";
  if (row.kind || row.status >= 400) return "error";
  return row.calls.some((call) => call.outcome !== "answered") ? "troubled" : "well";
}

/** What has become of an answer, and when. */
export function rowWords(row, elapsed) {
  const state = stateOfRow(row);
  if (state === "running") return `running for ${counting(elapsed)}`;
  const said = { error: "error", left: "broken off" }[state] ?? "answered";
  return `${said} after ${seconds(row.total)}${state === "troubled" ? ", though a tool failed" : ""}`;
}

export const ROW_STATES = {
  running: "running",
  well: "answered",
  troubled: "answered, a tool failed",
  error: "error",
  left: "client left, or broken off",
};

/** What names each of *calls*: its tool, and the group too if they are of several with that tool. */
export function namesOf(calls) {
  const groups = new Map();
  for (const call of calls) {
    if (!groups.has(call.tool)) groups.set(call.tool, new Set());
    groups.get(call.tool).add(call.group);
  }
  return (call) =>
    groups.get(call.tool).size > 1 ? `${short(call.tool)} of ${short(call.group)}` : short(call.tool);
}

/** A finish reason in words, as far as it is a known one. */
export function finishWords(reason) {
  const words = {
    stop: "finished",
    tool_calls: "asked for tools",
    function_call: "asked for a tool",
    length: "cut off: too long",
    content_filter: "cut off by a content filter",
  };
  return Object.hasOwn(words, reason) ? words[reason] : reason;
}
