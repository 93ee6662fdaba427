"""The curves of `seqrt tune` as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqrt.runtime.tuned import Tuning


def draw(tuning: "Tuning", file: Path) -> None:
    """Cost of a step by its rows; acceptance by depth; predicted and measured speed of each choice."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    cost, acceptance, speed = figure.subplots(1, 3)
    cost.plot(tuning.rows, tuning.step_ms, marker="o", markersize=3)
    cost.set(title="cost of a step", xlabel="rows", ylabel="ms", ylim=(0, None))
    for choice in tuning.choices:
        rates = [sum(row) for row in choice.acceptance]
        acceptance.plot(range(1, len(rates) + 1), rates, marker="o", markersize=3, label=choice.draft)
    acceptance.set(
        title="acceptance where the parent was accepted", xlabel="depth", ylabel="share of steps", ylim=(0, 1)
    )
    acceptance.set_xlim(0.5, 6.5)
    acceptance.legend(frameon=False)
    names = ["none", *(f"{choice.draft}\n{choice.rows} rows" for choice in tuning.choices)]
    predicted = [tuning.plain_tokens_per_second, *(choice.tokens_per_second for choice in tuning.choices)]
    measured = [tuning.measured_plain_tokens_per_second, *(c.measured_tokens_per_second for c in tuning.choices)]
    places = range(len(names))
    speed.bar([place - 0.2 for place in places], predicted, 0.4, label="predicted")
    speed.bar([place + 0.2 for place in places], [value or 0.0 for value in measured], 0.4, label="measured")
    speed.set(title="speed", ylabel="tokens/s")
    speed.set_xticks(list(places), names)
    speed.set_ylim(0, 1.3 * max([*predicted, *(value or 0.0 for value in measured)]))
    speed.legend(frameon=False, loc="upper center", ncols=2)
    machine = tuning.machine
    figure.suptitle(f"{machine.cpu}, {machine.cores} cores, {machine.engine}, {tuning.prompts} prompts", fontsize=9)
    figure.savefig(file, dpi=150)
