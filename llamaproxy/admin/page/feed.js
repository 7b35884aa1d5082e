// The one connection over which everything comes.

const EVENTS = ["hello", "rows", "gone", "tools", "draining"];

/** Milliseconds until a feed that was refused is asked for again; of one that broke off the
 *  browser takes care. */
const PAUSE = 3000;

export function follow(store) {
  const source = new EventSource("/feed");
  for (const event of EVENTS) {
    source.addEventListener(event, (message) => store.hear(event, JSON.parse(message.data)));
  }
  source.addEventListener("error", () => {
    store.connectionIs("lost");
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(store), PAUSE);
  });
}
