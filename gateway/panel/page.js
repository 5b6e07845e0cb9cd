// One poll a second while the tab is seen. Text from the gateway only ever becomes text nodes, never markup.

import {
  $, el, svg, say, keep, facts, chip, whole, ms, plural, unit, bytes, span, reading, rate, perSecond,
} from "./tools.js";

const POLL_MS = 1000;
const HISTORY = 90; // points of a sparkline, one a poll

// --- what is wrong -------------------------------------------------------------------------------------------

const SOURCE_TONE = { ok: "ok", starting: "info", silent: "warn", lost: "bad", failing: "bad" };
const MODEL_TONE = { ready: "ok", starting: "info", restarting: "warn", failed: "bad" };
const LINK_TONE = { up: "ok", connecting: "info", down: "warn", off: "" };
const SEVERITY_TONE = { info: "info", warning: "warn", alarm: "bad" };
const RANK = ["ok", "info", "warn", "bad"];

function problemsOf(s) {
  const found = [];
  for (const x of s.sources) if (x.state !== "ok") found.push([SOURCE_TONE[x.state], `Source ${x.name} is ${x.state}${x.detail ? ": " + x.detail : ""}`]);
  for (const m of s.models) if (m.state !== "ready") found.push([MODEL_TONE[m.state], `Model ${m.name} is ${m.state}${m.detail ? ": " + m.detail : ""}`]);
  if (s.spool.state !== "ok") found.push(["bad", `Spool is ${s.spool.state}${s.spool.detail ? ": " + s.spool.detail : ""}`]);
  if (s.uplink.state === "down") found.push(["warn", `Broker away: ${plural(s.spool.backlog, "row")} wait safely on disk`]);
  if (s.uplink.state === "connecting") found.push(["info", `Connecting to ${s.uplink.broker}`]);
  for (const e of raised(s.events)) found.push([SEVERITY_TONE[e.severity], `${e.name} (${e.origin}): ${e.message}`]);
  return found.sort((a, b) => RANK.indexOf(b[0]) - RANK.indexOf(a[0]));
}

/** Warnings and alarms whose newest word is that they are raised. */
function raised(events) {
  const newest = new Map();
  for (const e of events) {
    const name = e.origin + "\n" + e.name;
    if (e.state !== "point" && !newest.has(name)) newest.set(name, e);
  }
  return [...newest.values()].filter((e) => e.state === "raised" && e.severity !== "info");
}

function headline(level, verdict, because) {
  $("headline").dataset.level = level;
  say($("verdict"), verdict);
  say($("because"), because);
  document.title = `${verdict} · ${$("gateway").textContent}`;
}

function showHeadline(s) {
  const problems = problemsOf(s);
  const level = problems.length ? problems[0][0] : "ok";
  const waiting = s.uplink.state === "off" ? "kept on disk, no uplink is set" : s.spool.backlog ? "stored and being delivered" : "stored and delivered";
  if (level === "ok") headline("ok", "All good", `${plural(s.sources.length, "source")}, ${plural(s.models.length, "model")}: everything is ${waiting}.`);
  else if (level === "info") headline("info", "Starting", problems.map((p) => p[1]).join(" · "));
  else {
    const many = problems.filter((p) => p[0] !== "info").length;
    headline(level, many === 1 ? "One thing needs attention" : `${many} things need attention`,
      s.spool.state === "ok" ? "Readings are being stored; nothing is lost." : "Acquisition waits; what is stored is safe.");
  }
  const list = level === "warn" || level === "bad" ? problems : [];
  $("problems").hidden = !list.length;
  keep($("problems"), list, (p) => p[1].replace(/[\d,.]+/g, "#"), () => el("li"), (li, p) => { say(li, p[1]); li.dataset.tone = p[0]; });
  $("warnings").hidden = !s.warnings?.length;
  keep($("warning-list"), s.warnings ?? [], (w) => w, (w) => el("li", "", w), () => {});
}

// --- the cards -----------------------------------------------------------------------------------------------

function showTop(s, now) {
  say($("gateway"), s.gateway);
  facts($("facts"), [["Octogate", s.version], ["up", span(s.process.uptime_s)], ["memory", bytes(s.process.rss_bytes)], ["CPU", s.process.cpu_s.toFixed(1) + " s"]]);
  const sum = (of) => s.streams.reduce((total, stream) => total + stream[of], 0);
  const stored = sum("next_seq");
  facts($("totals"), [
    ["Rows/s", perSecond(rate("stored", stored, now))], ["Stored", whole(stored)],
    ["Delivered", whole(sum("delivered_seq"))], ["Waiting", whole(s.spool.backlog)],
  ]);
}

function headed(className = "") {
  const title = el("h3");
  const state = el("span", "chip");
  const end = el("span", "end");
  const node = el("div", className, el("div", "top", title, state, end));
  return Object.assign(node, { heading: title, state, end });
}

const isCamera = (source) => ["pictures", "camera", "video"].includes(source.kind);

function showSources(s, now) {
  keep($("sources"), s.sources, (x) => x.name, () => {
    const node = headed();
    node.note = node.appendChild(el("p", "note"));
    node.stats = node.appendChild(el("dl", "stats"));
    node.value = el("span", "big");
    node.end.append(node.value, el("span", "unit", "/s"));
    return node;
  }, (node, x) => {
    const camera = isCamera(x);
    say(node.heading, x.name);
    chip(node.state, x.state, SOURCE_TONE[x.state] ?? "");
    say(node.value, perSecond(rate("source " + x.name, camera ? x.frames : x.readings, now)) + " ");
    say(node.note, x.detail || x.kind);
    facts(node.stats, camera
      ? [["Pictures", whole(x.frames)], ["Replaced", whole(x.dropped)]]
      : [["Readings", whole(x.readings)], ["Gaps", whole(x.gaps)], ["Resent", whole(x.resent)], ["Refused", whole(x.bad)], ...(x.dropped ? [["Overwritten", whole(x.dropped)]] : [])]);
  });
}

const histories = new Map();
function remember(name, value) {
  const values = histories.get(name) ?? [];
  values.push(value);
  if (values.length > HISTORY) values.shift();
  histories.set(name, values);
  return values;
}

function makeChannel(name, code) {
  const node = el("div", "channel");
  node.value = el("span", "big");
  const plot = svg("svg", { class: "spark", viewBox: "0 0 100 50", preserveAspectRatio: "none", role: "img" });
  node.fill = plot.appendChild(svg("path", { class: "fill" }));
  node.base = plot.appendChild(svg("path", { class: "base", d: "M0 49.5H100" }));
  node.line = plot.appendChild(svg("polyline", { class: "line" }));
  node.plot = plot;
  node.low = el("span");
  node.high = el("span");
  node.append(el("div", "name", name), node.value, el("span", "unit", " " + unit(code)), plot, el("div", "range", node.low, node.high));
  return node;
}

function draw(node, values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = high - low || Math.abs(high) || 1;
  const wide = Math.max(values.length, 30) - 1;
  const x = (i) => 100 - ((values.length - 1 - i) / wide) * 100;
  const points = values.map((v, i) => `${x(i).toFixed(2)},${(46 - ((v - low) / room) * 42).toFixed(2)}`);
  node.line.setAttribute("points", points.join(" "));
  node.fill.setAttribute("d", `M${x(0).toFixed(2)},50 L${points.join(" L")} L100,50 Z`);
  node.plot.setAttribute("aria-label", `last ${values.length} seconds, from ${reading(low)} to ${reading(high)}`);
  say(node.low, `low ${reading(low)}`);
  say(node.high, `high ${reading(high)}`);
}

function showStreams(s, now) {
  const streams = [...s.streams].sort((a, b) => Object.keys(b.values ?? {}).length - Object.keys(a.values ?? {}).length);
  keep($("streams"), streams, (x) => x.name, () => {
    const node = headed("stream");
    node.channels = node.appendChild(el("div", "channels"));
    return node;
  }, (node, x) => {
    const waiting = x.next_seq - x.delivered_seq;
    say(node.heading, x.name);
    node.state.hidden = !x.stale;
    chip(node.state, x.stale ? "stale" : "", "warn");
    const speed = perSecond(rate("stream " + x.name, x.next_seq, now));
    say(node.end, `${speed}/s · ${whole(x.next_seq)} stored · ${s.uplink.state === "off" ? "no uplink" : waiting ? whole(waiting) + " waiting" : "all delivered"}`);
    node.end.className = "end small";
    keep(node.channels, Object.entries(x.values ?? {}), (c) => c[0], (c) => makeChannel(c[0], x.units?.[c[0]]), (channel, c) => {
      say(channel.value, reading(c[1]));
      draw(channel, remember(x.name + "/" + c[0], c[1]));
    });
  });
}

function showPipelines(s) {
  keep($("pipelines"), s.pipelines, (x) => x.name, () => {
    const node = headed();
    node.state.remove();
    node.label = node.appendChild(el("div", "big"));
    node.bars = node.appendChild(el("div", "bars"));
    node.note = node.appendChild(el("p", "note"));
    return node;
  }, (node, x) => {
    const result = x.newest?.result ?? {};
    const found = result.detections ?? [];
    const fields = result.fields?.map((f) => [f.name, f.confidence, (f.doubt ? "? " : "") + (f.value || f.text || "–")]);  // of a paper form
    say(node.heading, x.after ? `${x.name} (after ${x.after})` : x.name);
    say(node.end, `${whole(x.inferences)} made${x.skipped ? ` · ${whole(x.skipped)} skipped` : ""}${x.thinned ? ` · ${whole(x.thinned)} thinned` : ""}`);
    node.end.className = "end small";
    say(node.label, !x.newest ? (x.after ? `nothing found by ${x.after} yet` : "waiting for input") : (fields ? result.label : result.text || result.label) || (found.length ? plural(found.length, "object") : "nothing found"));
    const scores = fields ? fields : found.length ? found.map((d) => [d[0], d[1]]) : Object.entries(result.scores ?? {}).sort((a, b) => b[1] - a[1]);
    const best = Math.max(0, ...scores.map((c) => c[1]));
    const cells = scores.slice(0, fields ? 20 : 6).flatMap((c, i) => [["name", i, c], ["track", i, c], ["score", i, c]]);
    keep(node.bars, cells, (c) => c[0] + c[1], (c) => (c[0] === "track" ? el("span", "track", el("i")) : el("span")), (cell, [kind, , c]) => {
      if (kind === "track") cell.firstChild.style.width = (c[1] * 100).toFixed(1) + "%";
      else cell.className = kind === "score" ? "score" : c[1] === best ? "best" : "";
      if (kind !== "track") say(cell, kind === "name" ? c[0] : c[2] ?? (c[1] * 100).toFixed(0) + " %");
    });
    const values = Object.entries(result.values ?? {}).map(([k, v]) => `${k} ${reading(v)}`);
    say(node.note, x.newest ? [...values, `${x.newest.backend}, ${ms(x.newest.took_us / 1000)}`].join(" · ") : `${x.model} on ${x.source}`);
  });
}

function showModels(s) {
  keep($("models"), s.models, (x) => x.name, () => {
    const node = headed();
    node.trust = node.end.appendChild(el("span", "chip"));
    node.note = node.appendChild(el("p", "note"));
    node.stats = node.appendChild(el("dl", "stats"));
    return node;
  }, (node, x) => {
    say(node.heading, x.name);
    chip(node.state, x.state, MODEL_TONE[x.state] ?? "");
    chip(node.trust, x.signed ? "signed" : "unsigned", x.signed ? "ok" : "bad");
    say(node.note, [x.backend || "no backend yet", x.failed_over ? "failed over" : "", x.standby ? `standby ${x.standby}` : "", x.bundle, x.detail].filter(Boolean).join(" · "));
    facts(node.stats, [["p50", ms(x.p50_ms)], ["p99", ms(x.p99_ms)], ["Runs", whole(x.runs)], ["Restarts", whole(x.restarts)]]);
  });
}

function single(id) {
  const card = $(id);
  if (!card.node) {
    card.node = card.appendChild(headed());
    card.node.note = card.node.appendChild(el("p", "note"));
    card.node.stats = card.node.appendChild(el("dl", "stats"));
  }
  return card.node;
}

function showStoreAndLink(s) {
  const store = single("spool");
  say(store.heading, bytes(s.spool.bytes));
  chip(store.state, s.spool.state, s.spool.state === "ok" ? "ok" : "bad");
  say(store.note, s.spool.detail || `on disk in ${plural(s.spool.batches, "batch", "batches")}; time to disk p50 and p99`);
  facts(store.stats, [["Backlog", whole(s.spool.backlog)], ["Commits", whole(s.spool.commits)], ["p50", ms(s.spool.commit_p50_ms)], ["p99", ms(s.spool.commit_p99_ms)]]);
  const link = single("uplink");
  say(link.heading, s.uplink.broker || "none set");
  chip(link.state, s.uplink.state, LINK_TONE[s.uplink.state] ?? "");
  say(link.note, s.uplink.detail || (s.uplink.state === "off" ? "Everything stays on disk." : `for ${span(s.uplink.since_s)}; batches`));
  facts(link.stats, [["Sent", whole(s.uplink.sent)], ["In flight", whole(s.uplink.inflight)], ["Reconnects", whole(s.uplink.reconnects)], ["Rewinds", whole(s.uplink.rewinds)]]);
}

function showEvents(s) {
  $("no-events").hidden = s.events.length > 0;
  keep($("events"), s.events, (e) => `${e.stamp.boot} ${e.stamp.mono_ns} ${e.name} ${e.origin} ${e.state}`, (e) => {
    const time = el("time", "", e.stamp.wall_ns ? new Date(e.stamp.wall_ns / 1e6).toLocaleTimeString("en-GB") : "no clock");
    const state = el("span", "chip", e.state === "point" ? e.severity : e.state);
    state.dataset.tone = e.state === "cleared" ? "" : SEVERITY_TONE[e.severity];
    return el("li", "", time, el("span", "", state), el("span", "", el("b", "", e.name), e.message.startsWith(e.origin) ? " " : ` ${e.origin} `, el("span", "note", e.message)));
  }, () => {});
}

// --- pictures ------------------------------------------------------------------------------------------------

/** Every camera that has given a picture, and those that will: a camera on a node is `node/camera`. */
function camerasOf(s) {
  const states = new Map(s.sources.map((x) => [x.name, x.state]));
  return Object.entries(s.pictures ?? {}).map(([name, seq]) => ({ name, seq, state: states.get(name.split("/")[0]) ?? "" }));
}

function makePicture(source) {
  const node = el("figure");
  node.image = el("img");
  node.image.alt = `newest picture of ${source.name}`;
  node.boxes = svg("svg", { "aria-hidden": "true" });
  node.caption = el("figcaption", "small");
  node.away = el("p", "note");
  node.hidden = true;
  node.append(el("div", "frame", node.image, node.boxes), node.caption, node.away);
  return node;
}

function drawBoxes(node, found) {
  node.boxes.replaceChildren();
  const { clientWidth: width, clientHeight: height } = node.boxes;
  for (const [label, score, x0, y0, x1, y1] of found) {
    const [x, y] = [x0 * width, y0 * height];
    node.boxes.append(svg("rect", { class: "box", x, y, width: (x1 - x0) * width, height: (y1 - y0) * height, rx: 3 }));
    const tag = svg("rect", { class: "tag", height: 20, rx: 3 });
    const text = svg("text", { class: "tag-text" });
    text.textContent = `${label} ${(score * 100).toFixed(0)} %`;
    node.boxes.append(tag, text);
    const wide = text.getComputedTextLength() + 12;
    const [left, top] = [Math.max(0, Math.min(x - 1, width - wide)), y < 21 ? y : y - 20];
    tag.setAttribute("x", left);
    tag.setAttribute("y", top);
    tag.setAttribute("width", wide);
    text.setAttribute("x", left + 6);
    text.setAttribute("y", top + 14.5);
  }
}

async function loadPicture(node, source) {
  say(node.away, source.state === "ok" ? "" : `${source.name} is ${source.state}: this picture may be old`);
  if (node.busy || node.seq === source.seq) return;
  node.busy = true;
  try {
    const base = `api/sources/${encodeURIComponent(source.name)}`;
    const answer = await fetch(`${base}/annotation`, { signal: AbortSignal.timeout(3000) });
    if (!answer.ok) return;
    const { seq, inference } = await answer.json();
    if (seq !== node.seq) {
      const next = new Image();
      next.src = `${base}/picture?seq=${seq}`;
      await next.decode(); // rejects when it was replaced meanwhile: the next poll tries again
      node.image.src = next.src;
      await node.image.decode();
    }
    Object.assign(node, { seq, hidden: false });
    $("pictures-card").hidden = false;
    node.found = inference?.result.detections ?? [];
    drawBoxes(node, node.found);
    const names = node.found.map((d) => `${d[0]} ${(d[1] * 100).toFixed(0)} %`).join(", ") || "nothing found";
    say(node.caption, `${source.name} · picture ${whole(seq)} · ${inference ? `${names} · ${ms(inference.took_us / 1000)}` : "not looked at yet"}`);
    node.image.alt = `newest picture of ${source.name}: ${names}`;
  } catch (error) {
    if (!(error instanceof DOMException || error instanceof TypeError)) throw error;
  } finally {
    node.busy = false;
  }
}

function showPictures(s) {
  const cameras = camerasOf(s);
  keep($("pictures"), cameras, (x) => x.name, makePicture, (node, x) => void loadPicture(node, x));
  $("pictures-card").hidden ||= !cameras.length;
}
addEventListener("resize", () => { for (const node of $("pictures").children) drawBoxes(node, node.found ?? []); });

// --- the poll ------------------------------------------------------------------------------------------------

let timer = 0;
let lastAnswer = 0;
let polling = false;

function away(reason) {
  document.body.dataset.link = "away";
  const ago = lastAnswer ? ` Last answer ${span((performance.now() - lastAnswer) / 1000)} ago.` : "";
  headline("bad", "Gateway not answering", `${reason}${ago}`);
  $("problems").hidden = true;
}

async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  try {
    const answer = await fetch("api/status", { signal: AbortSignal.timeout(4000) });
    const status = await answer.json();
    if (answer.ok) show(status);
    else away(status.error + (status.spool_bytes ? `. ${bytes(status.spool_bytes)} are stored on its disk.` : "."));
  } catch (error) {
    if (!(error instanceof DOMException || error instanceof TypeError || error instanceof SyntaxError)) throw error;
    away("This page cannot reach the gateway's panel.");
  } finally {
    polling = false;
    if (!document.hidden) timer = setTimeout(poll, POLL_MS);
  }
}

function show(s) {
  const now = performance.now();
  lastAnswer = now;
  document.body.dataset.link = "up";
  showTop(s, now);
  showHeadline(s);
  showSources(s, now);
  showStreams(s, now);
  showPipelines(s);
  showModels(s);
  showStoreAndLink(s);
  showEvents(s);
  showPictures(s);
  say($("polled"), `answered ${new Date().toLocaleTimeString("en-GB")}`);
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) poll();
});
poll();
