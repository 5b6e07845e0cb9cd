// A Sparkplug host made of npm's mqtt and sparkplug-payload: tells on stdout, a JSON line each, what it understands.
//
//     node host.js PORT GROUP NODE [HOST_ID]
//
// Lines on stdin: `rebirth`, `write DEVICE METRIC UINT32`, `online`, `offline` (STATE of HOST_ID). Names of aliased
// metrics are those of the last birth, as a real host resolves them.
"use strict";
const readline = require("node:readline");
const mqtt = require("mqtt");
const { encodePayload, decodePayload } = require("sparkplug-payload").get("spBv1.0");

const [port, group, node, hostId] = process.argv.slice(2);
const say = (line) => process.stdout.write(JSON.stringify(line, plain) + "\n");
const names = new Map(); // alias -> name, across the node's births

// protobufjs gives 64-bit integers as Long
function plain(_key, value) {
  return value !== null && typeof value === "object" && "low" in value && "high" in value ? Number(value) : value;
}

const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, { clientId: "foreign-host", clean: true, reconnectPeriod: 200 });
client.on("connect", () => {
  client.subscribe(`spBv1.0/${group}/#`, { qos: 1 }, () => say({ kind: "ready" }));
});
client.on("message", (topic, payload, packet) => {
  const [, , kind, , device] = topic.split("/");
  if (kind === "NCMD" || kind === "DCMD") return;
  const decoded = decodePayload(payload);
  const metrics = (decoded.metrics || []).map((metric) => {
    if (kind.endsWith("BIRTH") && metric.alias !== undefined && metric.alias !== null) {
      names.set(Number(metric.alias), metric.name);
    }
    return { ...metric, name: metric.name || names.get(Number(metric.alias)), named: Boolean(metric.name) };
  });
  say({
    kind, topic, device: device || "", seq: decoded.seq === undefined ? null : decoded.seq,
    timestamp: decoded.timestamp, qos: packet.qos, retain: packet.retain, metrics,
  });
});

const started = Date.now();
const command = (topic, metrics) =>
  client.publish(topic, Buffer.from(encodePayload({ timestamp: Date.now(), metrics })), { qos: 0 });
const state = (online) =>
  client.publish(`spBv1.0/STATE/${hostId}`, JSON.stringify({ online, timestamp: started }), { qos: 1, retain: true });

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const [verb, device, metric, value] = line.split(" ");
  if (verb === "rebirth") {
    command(`spBv1.0/${group}/NCMD/${node}`, [{ name: "Node Control/Rebirth", type: "Boolean", value: true }]);
  } else if (verb === "write") {
    command(`spBv1.0/${group}/DCMD/${node}/${device}`, [{ name: metric, type: "UInt32", value: Number(value) }]);
  } else if (verb === "online" || verb === "offline") {
    state(verb === "online");
  }
}).on("close", () => client.end(true, () => process.exit(0)));
