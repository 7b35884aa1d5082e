// What the page asks for besides the feed.

/** All that is kept of one answer; null if it is kept no longer. */
export async function detail(key, signal) {
  const response = await fetch(`/answers/${key}`, { signal });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`the proxy answered with status ${response.status}`);
  return response.json();
}

export const downloadUrl = (key) => `/answers/${key}?download`;

/** End an answer. Whether it still ran. */
export async function stop(key) {
  const response = await post(`/answers/${key}/stop`, "{}");
  if (response.status === 404) return false;
  if (!response.ok) throw new Error(`the proxy answered with status ${response.status}`);
  return true;
}

/** Run a tool; *text* is the JSON text of its arguments, which is sent as it stands. */
export async function tryTool(group, tool, text) {
  const body = `{"group":${JSON.stringify(group)},"tool":${JSON.stringify(tool)},"arguments":${text}}`;
  const response = await post("/tools/try", body);
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw new Error(said?.error?.message ?? `the proxy answered with status ${response.status}`);
  }
  return response.json();
}

function post(path, body) {
  return fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
}
