"""Times of operators: whose they are, and that they lie where they belong."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from seqrt.runtime.model import Model, load
from seqrt.runtime.options import Options
from seqrt.runtime.profiling.measure import measure
from seqrt.runtime.profiling.operators import Traced, by_module, module_of, trace_operators
from seqrt.runtime.profiling.trace import chrome_trace
from seqrt.runtime.prompts import Prompt

PROMPT = Prompt(turns=("the quick fox",), id="fox")
WANTED = [
    Options(max_new_tokens=30, ignore_eos=True),
    Options(max_new_tokens=30, ignore_eos=True, draft="medusa", adaptive=False),
]


@pytest.fixture(scope="module")
def traced(llama_bundle: Path) -> Iterator[list[Traced]]:
    with load(llama_bundle, operators=True) as model:
        yield trace_operators(model, PROMPT, WANTED)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("layers.3.mlp.up/MatMul_71", "layers.3.mlp.up"),
        ("layers.3/Mul_7/QuickGeluFusion/", "layers.3"),
        ("hydra.0/MatMul_3", "hydra.0"),
        ("{ForeignNode[layers.0.attention/Shape_3...layers.0.mlp/TopK_9]}", "layers.0"),
        ("{ForeignNode[frame/Shape_3...readout/TopK_9]}", ""),
        ("PWN(layers.0.mlp/Sigmoid_3, layers.0.mlp/Mul_4)", "layers.0.mlp"),
        ("Reformatting CopyNode for Input Tensor 0 to layers.0/Cast_1", "layers.0"),
        ("__myl_FcMulAdd_myl3_7", ""),
        ("anything", ""),
    ],
)
def test_modules_by_name(name: str, module: str) -> None:
    assert module_of(name) == module


def test_operators_lie_in_the_runs_of_their_engine(traced: list[Traced]) -> None:
    assert [one.draft for one in traced] == ["none", "medusa"]
    for one in traced:
        by_run = defaultdict[tuple[str, float], float](float)
        for operation in one.operations:
            (run,) = [
                run
                for run in one.timeline.runs
                if run.name == operation.role and run.start <= operation.span.start <= run.end
            ]
            assert operation.span.end <= run.end + 1e-4  # clocks of two programs, in whole microseconds
            assert operation.span.step == run.step
            by_run[run.name, run.start] += operation.span.seconds
        assert {role for role, _ in by_run} == {run.name for run in one.timeline.runs} - {"compaction"}
        for (role, start), seconds in by_run.items():
            (run,) = [run for run in one.timeline.runs if (run.name, run.start) == (role, start)]
            assert seconds <= run.seconds + 1e-4


def test_operators_by_module(traced: list[Traced]) -> None:
    table = by_module(traced)
    decoder = [row for row in table if row["graph"] == "decoder"]
    assert sum(row["share"] for row in decoder) == pytest.approx(1.0, abs=0.01)
    assert [row["ms_per_step"] for row in decoder] == sorted((row["ms_per_step"] for row in decoder), reverse=True)
    modules = {row["module"] for row in decoder}
    assert modules >= {
        "layers.*.attention",
        "layers.*.mlp",
        "layers.*.attention.qkv",
        "layers.*.mlp.up",
        "readout.head",
    }
    (attention,) = [row for row in decoder if row["op_type"] == "Attention"]
    assert (attention["module"], attention["calls_per_step"]) == ("layers.*.attention", 2.0)  # layers
    assert any(row["graph"] == "medusa" for row in table)


def test_a_timeline_for_perfetto(model: Model, traced: list[Traced]) -> None:
    found = measure(model, [PROMPT], WANTED, warm_up=0)
    events = chrome_trace(found.rows, traced)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert list(names.values()) == [
        "--draft none",
        "--draft medusa",
        "operators, --draft none (slower)",
        "operators, --draft medusa (slower)",
    ]
    tracks = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    stages = ["request", "step", "tokenise", "prefill", "draft", "verify", "accept", "sample", "commit", "detokenise"]
    for process in (1, 2):  # in the order of the loop, whatever came first
        assert [name for (pid, _), name in sorted(tracks.items()) if pid == process][:10] == stages
    assert {name for (pid, _), name in tracks.items() if pid == 2} >= {"engine: decoder", "engine: medusa"}
    spans = [event for event in events if event["ph"] == "X"]
    assert {(event["pid"], event["tid"]) for event in spans} <= tracks.keys()
    assert min(event["ts"] for event in spans) == 0
    requests = {event["pid"]: event for event in spans if event["name"] == "request"}
    for event in spans:
        whole = requests[event["pid"]]
        assert whole["ts"] - 1 <= event["ts"]
        assert event["ts"] + event["dur"] <= whole["ts"] + whole["dur"] + 100
        if tracks[event["pid"], event["tid"]].startswith("engine"):
            assert event["dur"] >= 0
    steps = [event for event in spans if event["pid"] == 2 and event["name"].startswith("step ")]
    assert [event["args"]["rows"] for event in steps] == found.rows[1].rows
    (attention, *_) = [event for event in spans if event["args"].get("operator") == "Attention"]
    assert attention["args"]["module"] == "layers.0.attention"
    assert attention["name"] == "layers.0.attention · Attention"


def test_a_model_without_times_has_none(model: Model) -> None:
    assert [each.operations for each in trace_operators(model, PROMPT, WANTED[:1])] == [()]
    assert by_module(trace_operators(model, PROMPT, WANTED[:1])) == []
