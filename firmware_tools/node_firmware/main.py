# The node's program: reads its sensor at the rate of config.json and hands frames to the link.
import json

import sensors

FRAME_OVERHEAD = 17  # octolink.DATA_OVERHEAD
LATE_US = 1000000  # so far behind the schedule starts anew


def make_sensor(config):
    if config["sensor"] == "replay":
        return sensors.Replay(config["file"], config["channels"])
    if config["sensor"] == "counter":
        return sensors.Counter()
    raise ValueError("config.json: sensor: %r; replay or counter, or add yours to sensors.py" % config["sensor"])


def run(config):
    sensor = make_sensor(config)
    n, rate = config.get("frame", 10), config["rate"]
    size = sensors.record_size(sensor.channels)
    slot, ring = FRAME_OVERHEAD + n * size, config.get("ring", 256)
    slab = bytearray(slot * ring)
    # only now: compiling it leaves the heap in pieces, too small for the ring
    from octolink import Link

    stream = {"id": 0, "name": config["stream"], "channels": sensor.channels, "rate": rate}
    commands = {config["stream"] + "/" + name: f for name, f in getattr(sensor, "commands", {}).items()}
    link = Link(config["node"], [stream], ring, slot, config.get("piece", 64), commands, slab)
    sample(link, sensor, n, size, rate)


def sample(link, sensor, n, size, rate):
    """For ever: reading k is made k / rate after the start, without drift."""
    millihertz = int(rate * 1000)  # whole numbers from here on: a board's floats have 24 bits

    def time_of(k):
        return start + k * 1000000000 // millihertz

    buf = bytearray(n * size)
    step = 1000000000 // millihertz
    ahead, block = (n, n) if sensor.block else (0, 1)  # a whole frame can be had when its last reading is due
    start, done, filled = link.clock.now(), 0, 0  # done: readings since start
    while True:
        wait = time_of(done + ahead) - link.clock.now()
        if wait > 0:
            link.poll((wait + 999) // 1000)
            continue
        if wait < -LATE_US:
            link.log(30, "sampling was late by %d ms" % (-wait // 1000))
            start -= wait
            continue
        try:
            sensor.fill(buf, filled * size, block)
        except OSError as error:
            link.log(40, "sensor: %r" % error)
        done += block
        filled += block
        if filled == n:
            link.put(0, time_of(done - n), step, buf, n)
            filled = 0
            link.poll(0)


with open("config.json") as file:
    run(json.load(file))
