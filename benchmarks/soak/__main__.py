"""The command line of `scripts/soak`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.soak.job import Job, make_home
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.trials import Trials

__all__ = ["main"]

VARIANTS = "variants={int8: [{pass: quantize, method: static, num_samples: 32}]}"
OPTIONS = ("--set", "targets=[onnxruntime, openvino]", "--set", VARIANTS)
KINDS = ("kills", "bits", "signals", "input", "disk", "runtime", "together", "repeat")
DISKS = 6
REPEATS = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; returns 1 where anything failed, and 130 where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Kill, interrupt, starve and damage runs of a small job, and check that the "
        "runs after it give what an undisturbed one gives.",
    )
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs; the rest grows with them")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--only", nargs="*", metavar="FAULT", help="some of the kinds of faults")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/soak.json"))
    options = parser.parse_args(arguments)
    if set(options.only or ()) - set(KINDS):
        parser.error(f"--only takes {', '.join(KINDS)}")
    ledger = Ledger(seed=options.seed, minutes=options.minutes)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        job = Job(make_home(Path(folder) / "home"), OPTIONS)
        trials = Trials(job, Path(folder), ledger)
        trials.run_undisturbed()
        few = max(1, options.kills // 10)
        polite = [signal.SIGINT, signal.SIGTERM] * few
        kinds: dict[str, Callable[[], None]] = {
            "kills": lambda: trials.end_at_random([signal.SIGKILL] * options.kills),
            "bits": lambda: trials.flip_bits(max(1, options.kills // 2)),
            "signals": lambda: trials.end_at_random(polite),
            "input": trials.change_inputs,
            "disk": lambda: trials.fill_disks(DISKS),
            "runtime": trials.break_a_target,
            "together": lambda: trials.run_twice_at_once(few),
            "repeat": lambda: trials.repeat(REPEATS),
        }
        assert tuple(kinds) == KINDS
        for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell had them ignored
            signal.signal(number, signal.default_int_handler)
        try:
            for name, run in kinds.items():
                if options.only is None or name in options.only:
                    run()
        except KeyboardInterrupt:  # what was found until then counts, and is not all
            ledger.is_interrupted = True
    ledger.write(options.output)
    print(f"\n{ledger.table()}\n\nwritten to {options.output}")
    if ledger.failures:
        return 1
    return INTERRUPTED if ledger.is_interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
