"""Replay a seed, or try many."""

from __future__ import annotations

import argparse
import sys
import time

from simulation.run import many, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("seed", type=int, help="the seed to replay, or the first of many")
    parser.add_argument("--count", type=int, default=1, help="how many seeds to try, from SEED on")
    parser.add_argument("--plan", help="the plan of faults, whatever the seed would draw")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--processes", type=int, default=None, help="how many to use; all cores by default")
    args = parser.parse_args()
    if args.count == 1:
        result = simulate(args.seed, plan=args.plan, trace=args.trace)
        print(result)
        return bool(result.broken)
    started = time.monotonic()
    failed = 0
    plans: dict[str, int] = {}
    for result in many(range(args.seed, args.seed + args.count), plan=args.plan, processes=args.processes):
        plans[result.plan] = plans.get(result.plan, 0) + 1
        if result.broken:
            failed += 1
            print(result, flush=True)
    seconds = time.monotonic() - started
    print(
        f"{args.count} seeds, {failed} broken, {seconds:.1f} s, {seconds / args.count * 1000:.0f} ms a seed"
    )
    print(plans)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
