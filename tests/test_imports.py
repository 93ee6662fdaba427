"""Imports go one way, as docs/architecture.md draws it: cli -> exporter -> graphs, cli -> runtime."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FACE = "face"  # seqrt itself: __init__ and errors
ROOMS = ("cli", "exporter", "graphs", "runtime")

# What a room may import of seqrt, itself and seqrt.errors apart.
ALLOWED = {
    FACE: ("seqrt.runtime",),
    "cli": (FACE, "seqrt.exporter", "seqrt.runtime"),
    "exporter": ("seqrt.graphs", "seqrt.runtime.bundle"),
    "graphs": (),
    "runtime": (),
}
# What runtime may import from elsewhere: on loading, and inside functions.
EAGER = {"numpy"}
LAZY = EAGER | {"PIL", "cuda", "jinja2", "onnxruntime", "tokenizers"}


def modules() -> dict[str, Path]:
    """Every module of the package by the name it is imported under."""
    folders = {"seqrt.exporter": "exporter", "seqrt.graphs": "graphs", "seqrt.runtime": "runtime"}
    folders |= {"seqrt.cli": "src/seqrt/cli"}
    found = {"seqrt": ROOT / "src/seqrt/__init__.py", "seqrt.errors": ROOT / "src/seqrt/errors.py"}
    for package, folder in folders.items():
        for path in (ROOT / folder).rglob("*.py"):
            name = ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
            found[name.removesuffix(".__init__")] = path
    return dict(sorted(found.items()))


MODULES = modules()


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else FACE


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Full names that a module imports, and whether that happens when it is loaded."""

    def visit(node: ast.AST, eager: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are banned"
            yield from ((f"{node.module}.{alias.name}", eager) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, eager and not inside and not typing)

    return visit(ast.parse(source), True)


def forbidden(module: str, source: str) -> list[str]:
    """What a module imports and must not."""
    room = room_of(module)
    own = "seqrt.errors" if room == FACE else f"seqrt.{room}"
    allowed = (*ALLOWED[room], own, "seqrt.errors")
    wrong = []
    for name, eager in imports(source):
        top = name.split(".")[0]
        if top == "seqrt":
            fits = any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed) or room_of(name) in allowed
        elif room == "runtime":
            fits = top in sys.stdlib_module_names or top in (EAGER if eager else LAZY)
        else:
            fits = top not in ("tools", "tests", *ROOMS)
        if not fits:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_room_may(module: str) -> None:
    assert forbidden(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("seqrt.runtime.tree", "import torch", ["torch"]),
        ("seqrt.runtime.tree", "def f():\n    import transformers", ["transformers"]),
        ("seqrt.runtime.text", "import tokenizers", ["tokenizers"]),
        ("seqrt.runtime.text", "def f():\n    import tokenizers", []),
        ("seqrt.runtime.text", "if TYPE_CHECKING:\n    from tokenizers import Tokenizer", []),
        ("seqrt.runtime.model", "from seqrt.exporter.export import export", ["seqrt.exporter.export.export"]),
        ("seqrt.runtime.model", "import seqrt.runtime.tree\nfrom seqrt.errors import RequestError", []),
        ("seqrt.exporter.export", "from seqrt.runtime.bundle import Manifest", []),
        ("seqrt.exporter.export", "from seqrt.runtime import bundle", []),
        ("seqrt.exporter.export", "from seqrt.runtime.tree import Tree", ["seqrt.runtime.tree.Tree"]),
        ("seqrt.exporter.export", "from seqrt.runtime import bundles", ["seqrt.runtime.bundles"]),
        ("seqrt.exporter.export", "from seqrt.cli import main", ["seqrt.cli.main"]),
        ("seqrt.graphs.decoder", "import seqrt.exporter.trace", ["seqrt.exporter.trace"]),
        ("seqrt.graphs.decoder", "from graphs import rope", ["graphs.rope"]),
        ("seqrt.cli.run", "from seqrt.graphs import config", ["seqrt.graphs.config"]),
        ("seqrt.cli.run", "import seqrt\nfrom seqrt import load\nimport seqrt.exporter.export", []),
        ("seqrt", "from seqrt.exporter.export import export", ["seqrt.exporter.export.export"]),
    ],
)
def test_the_rule_itself(module: str, source: str, wrong: list[str]) -> None:
    assert forbidden(module, source) == wrong


@pytest.mark.parametrize("module", ["seqrt", "seqrt.runtime", "seqrt.runtime.model", "seqrt.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    heavy = ("onnx", "onnx_ir", "onnxruntime", "tokenizers", "torch", "transformers")
    # None in sys.modules makes an import fail, so this holds whether or not these are installed.
    code = f"import sys\nfor name in {heavy}: sys.modules[name] = None\nimport {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["seqrt.exporter.export", "seqrt.graphs.decoder"])
def test_that_check_would_notice(module: str) -> None:
    code = f"import sys\nsys.modules['torch'] = None\nimport {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torch" in done.stderr
