"""A profile in words: tables for a terminal, for an issue or for a spreadsheet."""

import csv
import sys
from collections.abc import Sequence
from typing import Any, Final

from seqrt.cli.console import print_table
from seqrt.runtime.generate import REQUEST_STAGES

FORMATS: Final = ("table", "markdown", "csv")
_SHOWN_DEPTH: Final = 8
_FEW: Final = 0.05  # of drafted steps
_PERCENTILES: Final = ("mean", "p50", "p90", "p95", "p99")
_LATENCIES: Final = (("first token", "ttft_ms"), ("token", "itl_ms"), ("step", "step_ms"))
_SHORT: Final = {"detokenise": "detok"}  # 80 columns hold the table
_MEMORY: Final = (("host_peak_mb", "host"), ("gpu_used_mb", "GPU"))

Row = dict[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def print_profile(document: Row, as_format: str) -> None:
    """Prints a profile on stdout, with what it is of and what to hold against it; --format says how."""
    if as_format == "csv":
        _print_csv(document)
        return
    is_markdown = as_format == "markdown"
    print(summary(document), end="\n\n" if is_markdown else "\n")
    for table in tables(document):
        if is_markdown:
            print(markdown(table), end="\n\n")
        else:
            print_table(*table)
    for line in [*remarks(document), *warnings(document)]:
        print(f"* {line}" if is_markdown else line)


def summary(document: Row) -> str:
    """What was measured where, in a line."""
    machine, settings = document["environment"], document["settings"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads'] or machine['cores']} threads"
    return (
        f"{settings['bundle']} ({settings['variant']}, weights {settings['quantization']}) on {where},"
        f" {machine['engine']}, seqrt {machine['seqrt']} at {(machine['commit'] or 'no commit')[:7]},"
        f" {machine['date'][:10]}: {counted(settings['prompts'], 'prompt')} x {settings['max_new_tokens']} new tokens"
        + (f", {settings['repeat']} times" if settings["repeat"] > 1 else "")
    )


def tables(document: Row) -> list[Table]:
    """Headings and rows: speed, latency, where steps spend their time, bandwidth, and llama-bench's figures."""
    rows = document["rows"]
    stages = stages_of_steps(rows[0])
    tests = [(test["test"], f"{test['tokens_per_second']:.2f} ± {test['stddev']:.2f}") for test in document["tests"]]
    every: list[Table] = [
        (
            ("draft", "tok/s", "p25-p75", "speed-up", "95 %", "tok/step", "break-even"),
            [_speed(row) for row in rows],
        ),
        (
            ("ms", "draft", *_PERCENTILES),
            [(name, row["draft"], *_figures(row[key])) for name, key in _LATENCIES for row in rows],
        ),
        (
            ("ms a step", *(_SHORT.get(name, name) for name in stages), "host", "%"),
            [(row["draft"], *_means(row, (*stages, "host")), _share(row)) for row in rows],
        ),
        (
            ("draft", "prefill tok/s", "MB a step", "GB/s", "of copy", "growth"),
            [_memory_use(row) for row in rows],
        ),
        (("test", "t/s"), tests),
    ]
    return [table for table in every if table[1]]


def remarks(document: Row) -> list[str]:
    """What the tables leave open, a line each."""
    lines = []
    for row in document["rows"][1:]:
        rates = [f"{rate:.2f}" for rate in row["acceptance_by_depth"][: shown_depths(row)]]
        if rates:
            accepted = f"{row['accepted_tokens']} of {row['drafted_tokens']} drafts accepted"
            lines.append(f"{row['draft']}: {accepted}, by depth {' '.join(rates)}")
        same, whole = round(row["same_text_as_none"] * len(row["answers"])), len(row["answers"])
        if same < whole:
            lines.append(f"{row['draft']}: {whole - same} of {whole} answers are not those of none")
        interval = row["speedup_interval"]
        if interval is not None and interval[1] < 1:
            brings, costs = row["answer_tokens_per_step"], row["break_even_tokens_per_step"]
            lines.append(
                f"{row['draft']} is slower than none: steps bring {brings:.2f} tokens and cost {costs:.2f} plain ones"
            )
    memory = document["memory"]
    told = [f"{memory[key]:.0f} MB of the {what}" for key, what in _MEMORY if memory[key] is not None]
    return [*lines, f"memory at most: {', '.join(told)}"] if told else lines


def stages_of_steps(row: Row) -> list[str]:
    """In the order of the loop."""
    return [name for name in row["stages_ms"] if name not in (*REQUEST_STAGES, "host")]


def counted(count: int, what: str) -> str:
    """Such as "1 prompt" and "2 prompts"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def shown_depths(row: Row) -> int:
    """Depths at which acceptance says something: rates of a few steps are noise."""
    drafted = row["drafted_by_depth"]
    return sum(count >= _FEW * drafted[0] for count in drafted[:_SHOWN_DEPTH])


def warnings(document: Row) -> list[str]:
    """Why not to trust it."""
    found = [f"warning: {warning}" for warning in document["stability"]["warnings"]]
    if not document["complete"] and document["task"] == "ocr":
        read, whole = len(document["rows"][0]["passes"]), document["settings"]["repeat"]
        found.append(f"warning: it was ended early; figures cover {read} of {whole} rounds")
    elif not document["complete"]:
        played = len({(answer["prompt"], answer["repeat"]) for answer in document["rows"][0]["answers"]})
        whole = document["settings"]["prompts"] * document["settings"]["repeat"]
        found.append(f"warning: it was ended early; figures cover {played} of {whole} conversations")
    return found


def markdown(table: Table) -> str:
    """As GitHub shows it."""
    headings, rows = table
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _speed(row: Row) -> tuple[str, ...]:
    of_answers, interval = row["tokens_per_second_of_answers"], row["speedup_interval"]
    return (
        row["draft"],
        _figure(row["tokens_per_second"] or None, 1),
        "-" if of_answers["p25"] is None else f"{of_answers['p25']:.1f}-{of_answers['p75']:.1f}",
        _figure(row["speedup_vs_none"], 2),
        f"{interval[0]:.2f}-{interval[1]:.2f}" if interval and row["draft"] != "none" else "-",
        _figure(row["answer_tokens_per_step"], 2),
        _figure(row["break_even_tokens_per_step"], 2),
    )


def _figures(percentiles: Row) -> list[str]:
    return [_figure(percentiles[name], 1) for name in _PERCENTILES]


def _means(row: Row, names: Sequence[str]) -> list[str]:
    return [_figure(row["stages_ms"][name]["mean"], 3) for name in names]


def _share(row: Row) -> str:
    host, step = row["stages_ms"]["host"]["mean"], row["step_ms"]["mean"]
    return "-" if not step else f"{host / step:.1%}"


def _memory_use(row: Row) -> tuple[str, ...]:
    read, share = row["bytes_per_step"], row["bandwidth_share"]
    return (
        row["draft"],
        _figure(row["prefill_tokens_per_second"], 0),
        "-" if read is None else f"{read / 1e6:.1f}",
        _figure(row["gb_per_second"], 1),
        "-" if share is None else f"{share:.0%}",
        _figure(row["itl_growth"]["ratio"], 2),
    )


def _print_csv(document: Row) -> None:
    """One line a drafter, then one a test; columns are the keys of the document, nested ones with a dot."""
    lines = [{"test": "prompts", **_flat(row)} for row in document["rows"]]
    lines += [{"draft": "none", **test} for test in document["tests"]]
    _write_csv(lines, "draft", "test")


def print_csv(rows: Sequence[Row]) -> None:
    """One line a row; columns are its keys, nested ones with a dot."""
    _write_csv([_flat(row) for row in rows])


def _write_csv(lines: Sequence[Row], *first: str) -> None:
    columns = dict.fromkeys([*first, *(key for line in lines for key in line)])
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
