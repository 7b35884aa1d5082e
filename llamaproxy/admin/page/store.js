// What the feed has told. Whoever shows it is told once a frame what has changed.

/** Answers that are kept, and changed keys that are remembered one by one. */
const MAX_ROWS = 500;
const MAX_CHANGED = 2000;

/** For sorting: the oldest first. A key says when an answer was found, which may be at its end. */
export const byAge = (a, b) => a.at - b.at || a.key - b.key;

export class Store {
  rows = new Map();
  tools = null;
  hello = null;
  /** "connecting", "live" or "lost" */
  connection = "connecting";
  /** {seconds} that the daemon gives what runs, once it has begun to stop; else null */
  draining = null;
  #offset = 0;
  #replacing = false;
  #changed = new Set();
  #all = false;
  #parts = new Set();
  #scheduled = false;
  #listeners = [];

  /** Let *listener* be called with what has changed: {keys, all, parts}. */
  listen(listener) {
    this.#listeners.push(listener);
  }

  /** The server's time now, in Unix seconds. */
  now() {
    return Date.now() / 1000 + this.#offset;
  }

  /** Seconds that *row* has taken, so far if it runs. */
  elapsed(row) {
    return row.total ?? Math.max(0, this.now() - row.at);
  }

  /** The newest answer to the request *id*, undefined if there is none. */
  newest(id) {
    let found;
    for (const row of this.rows.values()) {
      if (row.id === id && (found === undefined || byAge(row, found) > 0)) found = row;
    }
    return found;
  }

  connectionIs(connection) {
    if (connection === this.connection) return;
    this.connection = connection;
    this.#note("connection");
  }

  hear(event, body) {
    if (event === "hello") {
      this.hello = body;
      this.draining = null;
      this.#offset = body.time - Date.now() / 1000;
      this.#replacing = true; // by the rows that follow: until then the old ones stay
      this.connectionIs("live");
      this.#note("hello");
    } else if (event === "rows") this.#hearRows(body.rows);
    else if (event === "gone") for (const key of body.keys) this.#drop(key);
    else if (event === "tools") {
      this.tools = body;
      this.#note("tools");
    } else if (event === "draining") {
      this.draining = body;
      this.#note("connection");
    }
  }

  #hearRows(rows) {
    if (this.#replacing) {
      this.#replacing = false;
      const kept = new Set(rows.map((row) => row.key));
      for (const key of this.rows.keys()) if (!kept.has(key)) this.#drop(key);
    }
    for (const row of rows) {
      this.rows.set(row.key, row);
      this.#change(row.key);
    }
    if (this.rows.size > MAX_ROWS) this.#shorten();
    this.#note("rows");
  }

  #shorten() {
    const oldest = [...this.rows.values()].sort(
      (a, b) => (a.status === 0) - (b.status === 0) || byAge(a, b),
    );
    for (const row of oldest.slice(0, this.rows.size - MAX_ROWS)) this.#drop(row.key);
  }

  #drop(key) {
    if (this.rows.delete(key)) this.#change(key);
    this.#note("rows");
  }

  #change(key) {
    if (this.#changed.size < MAX_CHANGED) this.#changed.add(key);
    else this.#all = true; // a page that nobody looks at draws no frame
  }

  #note(part) {
    this.#parts.add(part);
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => this.#tell());
  }

  #tell() {
    const changes = { keys: this.#changed, all: this.#all, parts: this.#parts };
    this.#changed = new Set();
    this.#all = false;
    this.#parts = new Set();
    this.#scheduled = false;
    for (const listener of this.#listeners) listener(changes);
  }
}
