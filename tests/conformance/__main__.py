"""Every case against every server that is installed: a table of what differs.

``python -m tests.conformance [--all] [--memory] [--only TEXT] [--server NAME]``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path

from .cases import CASES
from .run import run
from .servers import installed, serving
from .upstream import Upstream

Results = dict[str, list[str]]


def main() -> int:
    """Print the table; the status is 1 if llamaproxy does worse than the better of the others."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--all", action="store_true", help="print cases that all pass, too")
    parser.add_argument("--memory", action="store_true", help="watch memory instead")
    parser.add_argument("--only", default="", help="only cases with this text in their names")
    parser.add_argument("--server", action="append", help="only this server; can be repeated")
    options = parser.parse_args()
    names = options.server or installed()
    if options.memory:
        from .memory import report

        report(names)
        return 0
    results: dict[str, Results] = {}
    with tempfile.TemporaryDirectory() as directory:
        workers = [
            threading.Thread(target=_run, args=(name, Path(directory), options.only, results))
            for name in names
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return _print(results, names, options.all)


def _run(name: str, directory: Path, only: str, results: dict[str, Results]) -> None:
    with Upstream() as upstream, serving(name, upstream.port, directory / name) as server:
        said: Results = {}
        for key, case in CASES.items():
            if only in key:
                said[key] = run(case, server.port, upstream)
        results[name] = said


def _print(results: dict[str, Results], names: list[str], everything: bool) -> int:
    worse = 0
    for key in next(iter(results.values())):
        said = {name: results[name][key] for name in names}
        if not everything and not any(said.values()):
            continue
        marks = " ".join(f"{name} {'FAIL' if said[name] else 'ok':4}" for name in names)
        others = [said[name] for name in names if name != "llamaproxy"]
        behind = bool(said.get("llamaproxy")) and (not others or not all(others))
        worse += behind
        print(f"{'!' if behind else ' '} {marks}  {key}  [RFC {CASES[key].rfc}]")
        for name in names:
            for problem in said[name]:
                print(f"      {name}: {problem}")
    total = len(next(iter(results.values())))
    for name in names:
        print(f"{name}: {sum(not p for p in results[name].values())} of {total} passed")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
