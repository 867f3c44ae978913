"""All benchmarks: measures, and writes RESULTS.md and plots: ``python -m benchmarks``."""

import argparse
import datetime
import pathlib
import sys
import time

from benchmarks import report, suite
from benchmarks.compare import Disagreement


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.replace("``", ""))
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases, to see that everything works")
    parser.add_argument("--glue", metavar="DIR", help="folder with MRPC and SST-2 of the GLUE benchmark; without it "
                        "lengths come from a table, and fine-tuning takes the sentences of sherl's demo")
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, default=pathlib.Path(__file__).parent,
                        help="where RESULTS.md and plots/ go, default benchmarks/")
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        sys.exit("error: the plots need the matplotlib package: pip install 'sherl[benchmarks]'")
    plan, start = suite.QUICK if options.quick else suite.FULL, time.perf_counter()

    def say(what):
        print(f"{time.perf_counter() - start:6.0f} s  {what}", flush=True)

    try:
        results = suite.run(plan, options.glue, say)
    except Disagreement as error:
        sys.exit(f"error: {error}")
    from benchmarks import plots

    options.out.mkdir(parents=True, exist_ok=True)
    plots.draw(results, options.out / "plots")
    (options.out / "RESULTS.md").write_text(report.page(results, plan, datetime.date.today().isoformat()))
    print(f"wrote {options.out / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
