import dataclasses

from seqrt.cli.common import _TABLE, make_options
from seqrt.runtime.options import Options


def test_every_option_is_on_the_command_line() -> None:
    assert _TABLE.keys() == {field.name for field in dataclasses.fields(Options)}


def test_what_was_typed_becomes_options() -> None:
    typed = {
        "stop": ["a", "b"],
        "stop_ids": [3],
        "logit_bias": ["7=-1.5", "8=-inf"],
        "temperature": 0.5,
        "tree": "0 00",
    }
    assert make_options(Options(max_new_tokens=9), typed) == Options(
        stop=("a", "b"),
        stop_ids=(3,),
        logit_bias={7: -1.5, 8: float("-inf")},
        temperature=0.5,
        tree="0 00",
        max_new_tokens=9,
    )
    assert make_options(Options(), {"stop": None, "stop_ids": None, "logit_bias": None}) == Options()
