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
    parser.add_argument("--only", choices=("architectures",), help="measure this section alone, and write it to "
                        "RESULTS-architectures.md")
    options = parser.parse_args(arguments)
    plan, start = suite.QUICK if options.quick else suite.FULL, time.perf_counter()

    def say(what):
        print(f"{time.perf_counter() - start:6.0f} s  {what}", flush=True)

    try:
        write = architectures if options.only else everything
        print(f"wrote {write(plan, options, say)}")
    except Disagreement as error:
        sys.exit(f"error: {error}")


def architectures(plan, options, say):
    """Measure and write the section on other architectures; returns the page's path."""
    start = time.perf_counter()
    cases = suite.architectures(plan, say)
    page = report.architecture_page(cases, time.perf_counter() - start, today())
    return written(options.out / "RESULTS-architectures.md", page)


def everything(plan, options, say):
    """Measure all and write the page and the pictures; returns the page's path."""
    try:
        from benchmarks import plots
    except ImportError:
        sys.exit("error: the plots need the matplotlib package: pip install 'sherl[benchmarks]'")
    results = suite.run(plan, options.glue, say)
    options.out.mkdir(parents=True, exist_ok=True)
    plots.draw(results, options.out / "plots")
    return written(options.out / "RESULTS.md", report.page(results, plan, today()))


def today():
    return datetime.date.today().isoformat()


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


if __name__ == "__main__":
    main()
