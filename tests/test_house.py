"""The limits that the project sets itself: layers, sizes, names, printing, start-up."""

from __future__ import annotations

import ast
import functools
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "genrec"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports its own package or a lower number. Single files first, then folders.
LAYERS = {
    "errors": 0, "types": 0, "recipe": 0, "manifest": 0, "artifact": 0, "progress": 0,
    "figures": 0, "memory": 0, "html_page": 0,
    "decode.trie": 1, "decode.trie_update": 1, "eval.metrics": 1, "data": 1,
    "tokenizers": 2, "prompts": 2,
    "decode": 3,
    "train": 4,
    "catalogue": 5, "model_engine": 5, "model_weights": 5, "opening": 5, "recommender": 5,
    "zero_shot": 5,
    "eval": 6, "serve": 6, "batch": 6, "doctor": 6, "bench": 6,
    "pipeline": 7, "tables": 7,
    "__main__": 8, "cli": 8, "cli_bench": 8, "cli_prompts": 8, "cli_recommend": 8, "cli_serve": 8,
    "cli_tokenize": 8, "cli_train": 8,
    "terminal": 8,
}  # fmt: skip


def name_module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def find_layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS[module] if module in LAYERS else LAYERS[parts[0]]


def parse_module(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def list_imports(tree: ast.Module) -> Iterator[str]:
    """The genrec modules that are imported at run time, inside functions too."""
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("genrec."):
            assert node.level == 0, "imports are absolute"
            yield node.module.removeprefix("genrec.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("genrec."):
                    yield alias.name.removeprefix("genrec.")


def count_code_lines(path: Path, first: int, last: int) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    return len([line for line in find_code_lines(path) if first <= line <= last])


@functools.cache
def find_code_lines(path: Path) -> set[int]:
    source = path.read_text(encoding="utf-8")
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    held: set[int] = set()
    ignored = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
        tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING,
    }  # fmt: skip
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ignored:
            held.update(range(token.start[0], token.end[0] + 1))
    return held - documented


def list_functions() -> list[tuple[str, int]]:
    found = []
    for path in MODULES:
        for node in ast.walk(parse_module(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = count_code_lines(path, node.lineno, node.end_lineno or node.lineno)
                found.append((f"{name_module(path)}:{node.name}", size))
    return found


def test_imports_point_down() -> None:
    faults = []
    for path in MODULES:
        module = name_module(path)
        if not module:  # genrec/__init__.py is the lazy public face
            continue
        for target in list_imports(parse_module(path)):
            # The files at the top are one package: they may use each other within a layer.
            own_package = module.split(".")[0] == target.split(".")[0] or (
                "." not in module + target and find_layer(module) == find_layer(target)
            )
            if not own_package and find_layer(target) >= find_layer(module):
                faults.append(f"{module} imports {target}")
            if own_package and find_layer(target) > find_layer(module):
                faults.append(f"{module} imports {target}, which lies above it")
    assert not faults


def test_imports_have_no_cycle() -> None:
    names = {name_module(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if name_module(path):
            graph[name_module(path)] = set(list_imports(parse_module(path))) & names
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' -> '.join((*trail, module))}"
        if module in done:
            return
        for target in graph.get(module, ()):
            visit(target, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())
    assert len(done) > 20


def test_functions_are_short() -> None:
    functions = list_functions()
    sizes = sorted(size for _, size in functions)
    too_long = [f"{name}: {size}" for name, size in functions if size > 60]
    assert not too_long
    assert sizes[int(0.9 * len(sizes))] <= 33
    assert len(sizes) > 100


def test_files_are_short() -> None:
    lengths = {name_module(p): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_only_the_command_line_prints() -> None:
    faults = [
        f"{name_module(path)}:{node.lineno}"
        for path in MODULES
        if name_module(path) != "cli"
        for node in ast.walk(parse_module(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not faults


def test_no_broad_except_and_no_unsafe_loading() -> None:
    faults = []
    for path in MODULES:
        for node in ast.walk(parse_module(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                if node.type is None or {"Exception", "BaseException"} & set(
                    caught.strip("()").replace(",", " ").split()
                ):
                    faults.append(f"{name_module(path)}:{node.lineno} catches {caught}")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in {"eval", "exec", "torch.load", "pickle.load", "pickle.loads"}:
                    faults.append(f"{name_module(path)}:{node.lineno} calls {called}")
    assert not faults


def test_names_say_what_they_hold() -> None:
    vague = {"utils", "common", "helpers"}
    for path in MODULES:
        parts = set(path.relative_to(PACKAGE).with_suffix("").parts)
        assert not parts & vague, path
        assert not any(part.startswith("base_") for part in parts), path
        for node in ast.walk(parse_module(path)):
            if isinstance(node, ast.FunctionDef):
                assert not node.name.startswith("get_"), f"{path}: {node.name}"


def test_every_module_says_what_it_owns() -> None:
    for path in MODULES:
        assert ast.get_docstring(parse_module(path)), path


def test_recipe_folders_hold_no_code() -> None:
    for folder in ("prompts", "tokenizers", "train", "eval"):
        assert (REPOSITORY / folder).is_dir()
        assert not list((REPOSITORY / folder).rglob("*.py")), folder


def test_tests_are_at_least_three_fifths_of_the_code() -> None:
    def count(paths: list[Path]) -> int:
        return sum(count_code_lines(path, 1, 10**9) for path in paths)

    assert count(sorted((REPOSITORY / "tests").rglob("*.py"))) >= 0.6 * count(MODULES)


@pytest.mark.parametrize("statement", ["import genrec", "import genrec.cli, genrec.pipeline"])
def test_starting_loads_no_heavy_library(statement: str) -> None:
    heavy = ("torch", "transformers", "datasets", "sklearn", "scipy", "matplotlib", "peft")
    check = f"{statement}; import sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
