"""A profile in words: tables for a terminal, for an issue or for a spreadsheet."""

import csv
import sys
from collections.abc import Sequence
from typing import Any, Final

from seqrt.cli.console import print_table
from seqrt.runtime.generate import REQUEST_STAGES

FORMATS: Final = ("table", "markdown", "csv")
_SHOWN_DEPTH: Final = 8

Row = dict[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def print_profile(document: Row, as_format: str) -> None:
    """Prints the rows of a profile on stdout; --format says how."""
    if as_format == "csv":
        _print_csv(document)
        return
    for table in tables(document):
        if not table[1]:
            continue
        if as_format == "markdown":
            print(markdown(table), end="\n\n")
        else:
            print_table(*table)
    for line in remarks(document):
        print(line)


def tables(document: Row) -> list[Table]:
    """Headings and rows: speed, latency, where steps spend their time, and llama-bench's figures."""
    rows = document["rows"]
    return [
        (
            ("draft", "tok/s", "p25-p75", "speed-up", "95 %", "tok/step", "break-even", "GB/s", "of copy"),
            [_speed(row) for row in rows],
        ),
        (
            ("draft, ms", *(f"{name} {p}" for name in ("TTFT", "token", "step") for p in ("p50", "p90", "p99"))),
            [(row["draft"], *_latencies(row)) for row in rows],
        ),
        (
            ("draft, ms a step", *_stages(rows), "host in all"),
            [(row["draft"], *_times(row, (*_stages(rows), "host"))) for row in rows],
        ),
        (
            ("test", "t/s"),
            [(test["test"], f"{test['tokens_per_second']:.2f} ± {test['stddev']:.2f}") for test in document["tests"]],
        ),
    ]


def remarks(document: Row) -> list[str]:
    """What the tables leave open, a line each."""
    lines = []
    for row in document["rows"]:
        if row["acceptance_by_depth"]:
            rates = " ".join(f"{rate:.2f}" for rate in row["acceptance_by_depth"][:_SHOWN_DEPTH])
            lines.append(f"{row['draft']}: acceptance by depth {rates}")
    for row in document["rows"]:
        if row["speedup_vs_none"] is not None and row["speedup_vs_none"] < 1:
            lines.append(
                f"{row['draft']} is slower than none: a step emits {row['tokens_per_step']:.2f} tokens and costs"
                f" {row['break_even_tokens_per_step']:.2f} plain ones"
            )
    growth = document["rows"][0]["itl_growth"]["ratio"]
    if growth is not None:
        lines.append(f"none: the last tenth of an answer's tokens took {growth:.2f} times the first tenth's time")
    lines.append(f"memory: {_memory(document['memory'])}")
    return lines


def markdown(table: Table) -> str:
    """As GitHub shows it."""
    headings, rows = table
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _speed(row: Row) -> tuple[str, ...]:
    of_answers, interval = row["tokens_per_second_of_answers"], row["speedup_interval"]
    is_known = of_answers["p25"] is not None
    return (
        row["draft"],
        f"{row['tokens_per_second']:.1f}",
        f"{of_answers['p25']:.1f}-{of_answers['p75']:.1f}" if is_known else "-",
        _figure(row["speedup_vs_none"], 2),
        f"{interval[0]:.2f}-{interval[1]:.2f}" if interval and row["draft"] != "none" else "-",
        f"{row['tokens_per_step']:.2f}",
        _figure(row["break_even_tokens_per_step"], 2),
        _figure(row["gb_per_second"], 1),
        "-" if row["bandwidth_share"] is None else f"{row['bandwidth_share']:.0%}",
    )


def _latencies(row: Row) -> list[str]:
    return [_figure(row[name][p], 1) for name in ("ttft_ms", "itl_ms", "step_ms") for p in ("p50", "p90", "p99")]


def _stages(rows: Sequence[Row]) -> list[str]:
    """Of steps, in their order."""
    return [name for name in rows[0]["stages_ms"] if name not in (*REQUEST_STAGES, "host")]


def _times(row: Row, names: Sequence[str]) -> list[str]:
    return [_figure(row["stages_ms"][name]["mean"], 3) for name in names]


def _memory(memory: Row) -> str:
    used, host = memory["gpu_used_mb"], f"{memory['host_peak_mb']:.0f} MB of the host at most"
    return host if used is None else f"{host}, {used:.0f} MB of the GPU"


def _print_csv(document: Row) -> None:
    """One line a drafter, then one a test; columns are the keys of the document, nested ones with a dot."""
    lines = [{"test": "prompts", **_flat(row)} for row in document["rows"]]
    lines += [{"draft": "none", **test} for test in document["tests"]]
    columns = dict.fromkeys(["draft", "test", *(key for line in lines for key in line)])
    writer = csv.DictWriter(sys.stdout, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


def _flat(row: Row, prefix: str = "") -> Row:
    found: Row = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            if not any(isinstance(item, dict) for item in value):  # answers and steps are for --json
                found[prefix + key] = " ".join(map(str, value))
        else:
            found[prefix + key] = value
    return found


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
