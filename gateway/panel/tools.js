// What the page is made with: elements, kept lists, numbers as people read them.

const SVG = "http://www.w3.org/2000/svg";
export const $ = (id) => document.getElementById(id);

export function el(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Set text only when it changed, so that screen readers and selections are left in peace. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Children of `parent` for `items`, each kept by its key: made once, updated in place, removed when gone. */
export function keep(parent, items, key, make, update) {
  const old = (parent.kept ??= new Map());
  const seen = new Map();
  items.forEach((item, i) => {
    const name = key(item);
    const node = old.get(name) ?? make(item);
    seen.set(name, node);
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null);
    update(node, item);
  });
  for (const [name, node] of old) if (!seen.has(name)) node.remove();
  parent.kept = seen;
}

/** A definition list from pairs [label, text]. */
export function facts(node, pairs) {
  keep(node, pairs, (p) => p[0], (p) => el("div", "", el("dt", "", p[0]), el("dd")), (row, p) => say(row.lastChild, p[1]));
}

export function chip(node, text, tone) {
  say(node, text);
  node.dataset.tone = tone;
}

export const whole = (n) => Math.round(n).toLocaleString("en");
export const ms = (n) => (n < 10 ? n.toFixed(1) : whole(n)) + " ms";
export const plural = (n, one, many = one + "s") => `${whole(n)} ${n === 1 ? one : many}`;
const UNITS = { Cel: "°C", "%": "%", "m/s2": "m/s²" }; // UCUM as people read it
export const unit = (code) => UNITS[code] ?? code ?? "";

export function bytes(n) {
  if (n < 1e5) return (n / 1024).toFixed(1) + " KiB";
  return n < 1e9 ? (n / 1048576).toFixed(1) + " MiB" : (n / 1073741824).toFixed(2) + " GiB";
}

export function span(s) {
  if (s < 60) return Math.floor(s) + " s";
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  return s < 86400 ? `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min` : `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function reading(v) {
  const size = Math.abs(v);
  return size >= 1000 ? whole(v) : v.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

/** Growth a second of a counter between polls, smoothed a little; null until it is known. */
const counters = new Map();
export function rate(name, value, now) {
  const last = counters.get(name);
  if (!last || value < last.value) {
    counters.set(name, { value, now, rate: null });
    return null;
  }
  const seconds = (now - last.now) / 1000;
  if (seconds < 0.4) return last.rate;
  const fresh = (value - last.value) / seconds;
  const smooth = last.rate === null ? fresh : 0.5 * last.rate + 0.5 * fresh;
  counters.set(name, { value, now, rate: smooth });
  return smooth;
}
export const perSecond = (r) => (r === null ? "–" : r >= 20 ? whole(r) : r.toFixed(1));
