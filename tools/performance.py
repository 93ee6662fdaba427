"""Writes docs/performance.md from the profiles in docs/profiles: no figure of that page is typed.

    python -m tools.performance
    python -m tools.performance --check    # exit code 1 if the page is not what the profiles say

A profile is what `seqrt profile --json` printed, under a name that says what it is of.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from seqrt.cli.report.tables import markdown, remarks, summary, tables, warnings
from seqrt.cli.session import prompts_of
from seqrt.runtime.options import Options
from seqrt.runtime.profiling.run import Amount
from seqrt.runtime.prompts import prompts_sha256

_ROOT: Final = Path(__file__).resolve().parents[1]
PROFILES: Final = _ROOT / "docs/profiles"
PAGE: Final = _ROOT / "docs/performance.md"
_MOST_OPERATORS: Final = 12
_HEAD: Final = """\
# Performance

Made by `python -m tools.performance` from the profiles in [profiles](profiles), each under the command that measures it
again. [How we measure](profiling.md) defines every number. Other engines, kinds of task, what quantisation costs, and
engines for GPUs are in [benchmarks](benchmarks.md).
"""


def page(profiles: Sequence[Path]) -> str:
    """The page, a section a profile."""
    return "\n".join([_HEAD, *(section(file.stem, json.loads(file.read_bytes())) for file in profiles)])


def section(name: str, document: dict[str, Any]) -> str:
    """One profile in words and tables."""
    lines = [f"## {name.replace('-', ' ')}", "", f"{summary(document)}.", "", f"    {command(document)}", ""]
    for table in tables(document):
        lines += [markdown(table), ""]
    if document.get("operators"):
        lines += [markdown(operators(document)), ""]
    lines += [f"* {line}" for line in [*remarks(document), _pulse(document["stability"]), *warnings(document)]]
    return "\n".join([*lines, ""])


def command(document: dict[str, Any]) -> str:
    """The command line that makes such a profile; BUNDLE and FILE stand for what it does not know the place of."""
    settings = document["settings"]
    default = dataclasses.asdict(Options(max_new_tokens=64)) | dataclasses.asdict(Amount()) | {"backend": "cpu"}
    default["warm_up"] = settings["warm_up"]  # in words
    words = ["seqrt", "profile", "BUNDLE", "--draft", ",".join(row["draft"] for row in document["rows"])]
    for name, usual in default.items():
        value, flag = settings.get(name, usual), f"--{name.replace('_', '-')}"
        if isinstance(value, bool) and value != usual:
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [word for item in value for word in (flag, str(item))]
        elif value and not isinstance(value, dict) and value != usual:
            words += [flag, str(value)]
    own = prompts_sha256(prompts_of(None))
    words += [] if settings["prompts_sha256"] == own else ["--prompts", "FILE"]
    threads = document["environment"]["threads"]
    words += ["--threads", str(threads)] if threads else []
    words += ["--html", "PAGE.html"] if document.get("operators") else []
    return shlex.join([*words, "--json"])


def operators(document: dict[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """The longest of a plain step."""
    decoder = [row for row in document["operators"] if row["graph"] == "decoder"][:_MOST_OPERATORS]
    rows = [(row["module"], row["op_type"], f"{row['calls_per_step']:g}", *_times(row)) for row in decoder]
    return ("module, plain step", "operator", "calls", "ms", "share"), rows


def _times(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['ms_per_step']:.3f}", f"{row['share']:.1%}"


def _pulse(stability: dict[str, Any]) -> str:
    parts = []
    for key, what in (("copy_gb_per_second", "copies of {} GB/s"), ("sha256_mb_per_second", "SHA-256 of {} MB/s")):
        figures = stability[key]
        varied = "" if figures["variation"] is None else f" (varied by {figures['variation']:.1%})"
        parts.append(what.format(figures["median"]) + varied)
    return f"the machine's pulse: {', '.join(parts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args(arguments)
    made = page(sorted(PROFILES.glob("*.json")))
    if not asked.check:
        PAGE.write_text(made, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != made:
        print(f"{PAGE} is not what the profiles say; run: python -m tools.performance", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
