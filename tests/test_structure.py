"""The structure of the code: directions of imports, import weight, docstrings and `__all__`."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import targets
from compressor.passes import available_passes
from compressor.recipe import builtin_recipes
from targets.discovery import Component, announcer
from targets.registry import available

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compressor", "targets")
HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt_rtx",
    "mlperf_loadgen",
    "datasets",
    "pandas",
    "pyarrow",
    "sklearn",
    "matplotlib",
    "plotly",
    "asyncssh",
    "model_signing",
    "cryptography",
    "mlflow",
    "optuna",
    "ray",
)


@cache
def modules() -> dict[str, Path]:
    """Name -> file of every module of both packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside of functions."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offenders(inside: str, *forbidden: str) -> list[str]:
    """Imports from ``forbidden`` packages in the modules of a package."""
    return [
        f"{module} imports {name}"
        for module, path in modules().items()
        if f"{module}.".startswith(f"{inside}.")
        for name in imports(path)
        if any(f"{name}.".startswith(f"{each}.") for each in forbidden)
    ]


def top_level_names(tree: ast.Module) -> set[str]:
    """Names that a module binds."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
        elif isinstance(node, ast.Assign):
            names.update(ast.unparse(target) for target in node.targets)
    return names


def is_public(module: str) -> bool:
    return not any(part.startswith("_") for part in module.split("."))


def imported_by(statement: str, *, without: tuple[str, ...] = ()) -> list[str]:
    """Which of the heavy libraries a statement imports, in a process of its own."""
    script = f"""
import sys
{statement}
print(*[name for name in {HEAVY + without!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# Directions


def test_the_walls_are_looked_at_where_the_code_is() -> None:
    assert {"targets.bundle", "compressor.passes.prune", "compressor.pipeline"} <= set(modules())
    assert offenders("compressor", "targets")


def test_the_device_half_never_imports_the_build_half() -> None:
    assert offenders("targets", "compressor") == []


@pytest.mark.parametrize(
    ("inside", "forbidden"),
    [
        ("compressor.passes", ("compressor.pipeline", "compressor.cli", "compressor.report")),
        ("compressor.report", ("compressor.passes", "compressor.pipeline", "compressor.cli")),
        ("compressor.recipe", ("compressor.pipeline", "compressor.cli", "compressor.report")),
        ("compressor.pruning", ("compressor.passes.prune", "compressor.pipeline")),
        ("compressor.training", ("compressor.passes.distill", "compressor.pipeline")),
        ("compressor.quantization", ("compressor.passes", "compressor.pipeline")),
        ("compressor.tasks", ("compressor.passes", "compressor.pipeline")),
        ("compressor.store", ("compressor.passes", "compressor.pipeline", "compressor.report")),
        ("compressor.data", ("compressor.passes", "compressor.pipeline", "compressor.report")),
        ("compressor.pipeline", ("compressor.cli",)),
        ("compressor.serving", ("compressor.passes", "compressor.pipeline", "compressor.cli")),
        ("compressor.tracking", ("compressor.passes", "compressor.pipeline", "compressor.cli")),
        ("compressor.devices", ("compressor.passes", "compressor.pipeline", "compressor.cli")),
        ("targets.runtimes", ("targets.worker", "targets.benchmark", "targets.predictor")),
    ],
)
def test_lower_layers_do_not_import_higher_ones(inside: str, forbidden: tuple[str, ...]) -> None:
    assert offenders(inside, *forbidden) == []


def test_the_build_half_names_no_runtime_but_through_targets() -> None:
    """Quantization and the check of exports use the reference runtime as a calculator."""
    found = offenders("compressor", "openvino", "tensorrt", "tensorrt_rtx")
    assert found == []


def test_no_pass_or_target_is_named_in_a_condition_elsewhere() -> None:
    names = {*available_passes(), *available()}
    found = [
        f"{module}, line {node.lineno}: {part.value!r}"
        for module, path in modules().items()
        if not module.startswith(("compressor.passes.", "targets.runtimes"))
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in names
    ]
    assert found == []


# Import weight


@pytest.mark.parametrize(
    "statement",
    [
        "import targets, targets.predictor, targets.worker_client, targets.benchmark",
        "import compressor.planning, compressor.data, compressor.store, compressor.gate.gate",
        "import compressor.serving; compressor.serving.available_formats()",
        "import compressor.tracking; compressor.tracking.available_trackers()",
        "import compressor.search.space, compressor.search.trials, compressor.search.workers",
    ],
)
def test_importing_is_light(statement: str) -> None:
    assert imported_by(statement) == []


def test_the_command_line_starts_without_the_parts_it_does_not_need() -> None:
    extra = ("compressor.recipe", "compressor.pipeline", "compressor.report", "rich.progress")
    assert imported_by("import compressor.cli.app", without=extra) == []


def test_loading_recipes_is_light() -> None:
    assert builtin_recipes()
    calls = "; ".join(f"load_recipe({name!r})" for name in builtin_recipes())
    assert imported_by(f"from compressor.recipe import load_recipe; {calls}") == []


def test_the_device_half_runs_without_the_build_half_installed() -> None:
    blocked = ("torch", "transformers", "onnx", "datasets", "pandas", "compressor")
    script = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import targets, targets.predictor, targets.benchmark, targets.evaluation_pack, targets.worker
for cls in targets.available().values():
    target = cls()
    target.cannot_lower(), target.cannot_run(), target.native_precisions(), target.versions()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Docstrings and names


@pytest.mark.parametrize("module", [name for name in modules() if is_public(name)])
def test_public_modules_have_a_docstring_and_an_honest_all(module: str) -> None:
    tree = parse(modules()[module])
    docstring = ast.get_docstring(tree)
    assert docstring, f"{module} has no docstring"
    first = docstring.splitlines()[0]
    assert first.endswith((".", ":")), first
    bound = top_level_names(tree)
    if modules()[module].name == "__init__.py" and "__all__" not in bound:
        assert len(tree.body) == 1  # a package that gathers nothing: its modules are its interface
        return
    assert "__all__" in bound, f"{module} has no __all__"
    if "__getattr__" in bound:  # its names are imported when they are first used
        loaded = importlib.import_module(module)
        bound |= {name for name in loaded.__all__ if getattr(loaded, name) is not None}
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and node.value is not None
        and "__all__" in ast.unparse(node).partition("=")[0]
    )
    assert len(set(names)) == len(names)
    assert [name for name in names if name not in bound or name.startswith("_")] == []
    if module.startswith("compressor.cli"):
        return  # commands are reached through the command tree
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
    }
    assert sorted(defined - set(names)) == []


def test_no_module_hides_a_public_name_of_its_package() -> None:
    """An imported module becomes an attribute of its package, in place of what was there."""
    assert [name for name in targets.__all__ if f"targets.{name}" in modules()] == []


def own(classes: Mapping[str, type[Component]]) -> list[str]:
    """Those of this repository: others may be installed beside it."""
    return [name for name, cls in classes.items() if announcer(cls) is None]


@pytest.mark.parametrize("name", own(available_passes()))
def test_every_pass_says_what_it_is(name: str) -> None:
    cls = available_passes()[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert cls.__module__ == f"compressor.passes.{name}"
    assert cls.__name__ == "".join(part.capitalize() for part in name.split("_"))
    assert cls.summary().endswith(".")
    assert len(cls.paper) > 10
    assert cls.consumes in ("torch", "onnx")
    assert cls.produces in ("torch", "onnx")
    assert cls.version >= 1
    assert cls.libraries
    for field, info in cls.model_fields.items():
        assert info.description, f"{name}.{field}"


@pytest.mark.parametrize("name", own(available()))
def test_every_target_says_what_it_is(name: str) -> None:
    cls = available()[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert cls.__module__ == f"targets.runtimes.{name}"
    assert cls.summary().endswith(".")
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\n{cls.extra} = [" in extras, f"there is no extra {cls.extra!r}"
    assert cls.form in ("torch", "onnx")
    assert cls.libraries
    for field, info in cls.model_fields.items():
        assert info.description, f"{name}.{field}"


# What has no place in the repository


def tracked_files() -> list[Path]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no git repository: {done.stderr.strip()}")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_file_holds_paths_of_a_machine_hosts_of_a_mirror_or_half_a_merge() -> None:
    forbidden = re.compile(
        "|".join(
            (
                "/wor" + r"k/\w",
                "/roo" + r"t/\w",
                r"/home/(?!me\b|user\b)[a-z]+/",
                r"https?://(?!localhost)[a-z0-9.-]*(?:artifactory|nexus|mirror)[a-z0-9.-]*",
                "extra-index" + "-url",
                "PRIVATE" + " KEY",
                "^(?:<{7}|>{7}) ",
            )
        )
    )
    found = []
    for path in tracked_files():
        if not path.is_file() or path.suffix in (".png", ".parquet", ".onnx", ".lock"):
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match.group()}"
            for number, line in enumerate(lines, 1)
            if (match := forbidden.search(line))
        ]
    assert found == []


def test_modules_stay_small() -> None:
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert [name for name, text in texts.items() if text.count("\n") > 600] == []


def _trusted_by_default(called: str) -> str:
    """Where the setting is left out, the Auto classes ask the user whether to run foreign code."""
    name, _, method = called.rpartition(".")
    asks = method == "from_config" or (
        method == "from_pretrained" and name.startswith(("Auto", "auto"))
    )
    return str(asks)


def test_no_unsafe_loading_and_no_shell() -> None:
    """No pickle, no yaml.load but the safe one, no shell, no code from a checkpoint."""
    found = []
    for module, path in modules().items():
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            options = {each.arg: ast.unparse(each.value) for each in node.keywords}
            unsafe = (
                called in ("eval", "exec", "os.system", "os.popen")
                or called.startswith("pickle.")
                or (called == "torch.load" and options.get("weights_only") != "True")
                or (called == "yaml.load" and "_UniqueKeyLoader" not in ast.unparse(node))
                or options.get("shell") == "True"
                or options.get("trust_remote_code", _trusted_by_default(called)) == "True"
            )
            if unsafe:
                found.append(f"{module}:{node.lineno}: {called}")
    assert found == []
