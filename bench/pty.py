"""What receiving costs: CPU per MB through a pseudo terminal, our port beside a bare `add_reader` + `os.read` loop.

    ./inv bench pty
    ./inv bench pty --args "--rounds 9 --json"

Another process fills the terminal (`bench.producer`). The two take turns, round by round, so that what else the machine does
meets both; what counts is the median of the rounds' ratios. Beside them `NodeSource`, which also decodes, checks and
hands over every reading. The bound for the port is 1.3 at full speed; exit status 1 past it. At 300 readings/s the port waits
for the end of a commit's period and reads less often than a bare loop does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.link import receive

BOUND = 1.3
WHO = ("bare", "SerialPort", "NodeSource")
# readings a frame, readings in all, readings/s (0: as fast as they are taken)
FLOWS = ((50, 4_000_000, 0.0), (1, 400_000, 0.0), (1, 3000, 300.0))


def measure(frame: int, count: int, rate: float, rounds: int) -> dict[str, Any]:
    """CPU ms a MB of each, and the ratios to the bare loop: medians over the rounds, and all of them."""
    cost: dict[str, list[float]] = {who: [] for who in WHO}
    for number in range(rounds):
        for who in WHO if number % 2 else reversed(WHO):
            cost[who].append(asyncio.run(receive(frame, count, rate, who))["cpu_ms_mb"])
    ratios = {who: [ours / bare for ours, bare in zip(cost[who], cost["bare"], strict=True)] for who in WHO[1:]}
    return {
        "frame": frame,
        "rate": rate,
        "cpu_ms_mb": {who: round(statistics.median(values), 2) for who, values in cost.items()},
        "ratio": {who: round(statistics.median(values), 2) for who, values in ratios.items()},
        "ratios": {who: [round(value, 2) for value in values] for who, values in ratios.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds: 1 or more")
    rows = []
    for flow in FLOWS:
        rows.append(row := measure(*flow, args.rounds))
        if not args.json:
            speed = f"{row['rate']:g} readings/s" if row["rate"] else "full speed"
            costs = ", ".join(f"{who} {value:g}" for who, value in row["cpu_ms_mb"].items())
            shares = ", ".join(f"{who} {value:.2f}x" for who, value in row["ratio"].items())
            print(f"frames of {row['frame']:2}, {speed:14} CPU ms/MB: {costs}; {shares}", flush=True)
    if args.json:
        print(json.dumps(rows))
    return int(any(row["ratio"]["SerialPort"] > BOUND for row in rows))


if __name__ == "__main__":
    sys.exit(main())
