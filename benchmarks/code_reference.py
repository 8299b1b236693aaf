"""The tests of a code benchmark on its own solutions: all must pass in the sandbox, and spoiled ones must fail.

    python benchmarks/code_reference.py HumanEval.jsonl
    python benchmarks/code_reference.py mbpp.jsonl

A solution is spoiled by leaving its function at once with None (the test must notice), and by ending the program
before the tests with exit code 0 (the mark must be missing).
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sekkei.evals.code import WORKERS, passes, program, read_exercises
from sekkei.evals.items import read_items
from sekkei.tools.watch import Limits

WAYS = ("as published", "returns None", "leaves early")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    exercises = read_exercises(file)
    solutions = read_items(file, lambda data: str(data.get("canonical_solution") or data["code"]))
    jobs = []
    for exercise, solution in zip(exercises, solutions):
        whole = program(exercise, solution, base=True)
        head, _, _ = whole.partition(solution)
        spoiled = f"{head}    return None\n" if exercise.entry else "def missing():\n    return None\n"
        jobs += [(whole, exercise.tests), (spoiled, exercise.tests), (f"{whole}\nexit(0)\n", exercise.tests)]
    limits = Limits(seconds=60.0, cpu_seconds=30)
    with ThreadPoolExecutor(WORKERS) as pool:
        verdicts = list(pool.map(lambda job: passes(job[0], job[1], limits), jobs))
    for place, way in enumerate(WAYS):
        own = verdicts[place :: len(WAYS)]
        print(f"{way:<14} {sum(good for good, _ in own)} of {len(own)} pass")
        if place == 0:
            print([(one.name, why) for one, (good, why) in zip(exercises, own) if not good])


if __name__ == "__main__":
    main()
