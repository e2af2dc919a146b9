"""The structure of the package: which package may import which, which file alone imports a heavy library, and when."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedpgp"

ORDER = (
    "core", "config", "data", "clip", "server_rules", "methods", "federation", "storage", "experiments", "analysis",
    "export", "tracking", "bench", "cli",
)  # fmt: skip
"""A package imports only itself and the packages before it."""

ROOT = {"__init__", "__main__"}
"""The only modules beside the packages: the public API, which may import all but `cli`, and `python -m fedpgp`."""

ONLY_IN = {
    "ray": (
        "federation/backends/actors", "federation/backends/ray_cluster", "federation/backends/driver",
        "federation/backends/versions", "experiments/sweeps/schedulers", "experiments/sweeps/tune_runner",
        "experiments/sweeps/search", "experiments/sweeps/optuna_search",
    ),
    "optuna": ("experiments/sweeps/optuna_search",),
    "mlflow": ("export/mlflow_model", "tracking/"),
    "typer": ("cli/",),
    "matplotlib": ("analysis/report/",),
    "rich": ("__init__", "analysis/report/", "cli/"),
    "dp_accounting": ("federation/accountant",),
    "pandas": ("export/mlflow_model", "export/prompt_file", "export/results"),
}  # fmt: skip
"""The files, or the folders ending in /, in which alone a library is imported."""

LATE = {
    "": {"huggingface_hub", "open_clip", "PIL", "safetensors", "scipy", "timm", "torch", "torchvision"},
    "__init__": {"fedpgp", "rich"},
    "cli/": {"fedpgp", "webbrowser", "yaml"},
    "federation/accountant": {"dp_accounting"},
    "experiments/launch": {
        f"fedpgp.federation.backends.{name}" for name in ("ray_cluster", "driver", "local_ray", "versions")
    },
    "experiments/runner": {"fedpgp.federation.backends.actors"},
    "experiments/sweeps/sweep_runner": {"fedpgp.experiments.sweeps.optuna_search"},
    "export/mlflow_model": {"mlflow"},
    "export/results": {"fedpgp.analysis.report.figures"},
    "federation/backends/ray_cluster": {"grpc"},
    "federation/backends/versions": {"fedpgp.core.provenance"},
    "tracking/": {"mlflow", "sqlalchemy", "werkzeug", "fedpgp.analysis"},
    "tracking/__init__": {"fedpgp.tracking.mirror"},
}
"""All that may be imported inside functions, so that what does not need it starts fast, or because the function is
sent to other machines: by file or folder (empty: by every file), a module and what lies below it."""


def name_of(path, package):
    return path.relative_to(package).as_posix().removesuffix(".py")


def within(name, places):
    return any(name == place or (place[-1:] in ("", "/") and name.startswith(place)) for place in places)


def imports(tree):
    """(full name, whether it is inside a function, whether for type checking alone) of all that a file imports."""

    def walk(node, late, typing):
        for child in ast.iter_child_nodes(node):
            inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if isinstance(child, ast.Import):
                yield from ((item.name, late, typing) for item in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = "." * child.level + (child.module or "")
                yield from ((f"{base}.{item.name}", late, typing) for item in child.names)
            yield from walk(child, inside, checking)

    yield from walk(tree, False, False)


def allowed(name):
    """What may follow `fedpgp.` in the imports of a module; "": the public API."""
    if name == "__main__":
        return {"cli"}
    if name == "__init__":
        return set(ORDER[:-1])
    own = name.split("/")[0]
    return {*ORDER[: ORDER.index(own) + 1], "__version__"} | ({"", "tune_configs"} if own == "cli" else set())


def violations(package):
    """What breaks the rules in a tree of modules, as sorted lines."""
    found = set()
    for path in package.rglob("*.py"):
        name = name_of(path, package)
        own, _, rest = name.partition("/")
        if not (name in ROOT or (rest and own in ORDER)):
            found.add(f"{name}: no rule covers it")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if ast.get_docstring(tree) is None:
            found.add(f"{name}: does not say what it is for")
        for full, late, typing in imports(tree):
            library = full.split(".")[0]
            if not library:
                found.add(f"{name}: relative import {full}")
            if library == "fedpgp":
                target = [*full.split("."), ""][1]
                if target not in allowed(name):
                    found.add(f"{name}: imports {target or 'the public API'}")
            if library in ONLY_IN and not typing and not within(name, ONLY_IN[library]):
                found.add(f"{name}: imports {library}")
            if late and not typing:
                permitted = set().union(*(what for place, what in LATE.items() if within(name, [place])))
                if not any(f"{full}.".startswith(f"{what}.") for what in permitted):
                    found.add(f"{name}: imports {full} inside a function")
    return sorted(found)


def test_the_package_keeps_the_rules():
    assert violations(PACKAGE) == []


KINDS = {
    "upwards": ("storage/rows.py", '"""Rows."""\nfrom fedpgp.analysis import loading\n', "imports analysis"),
    "upwards in a function": (
        "core/files.py",
        '"""Files."""\ndef read():\n    """Read."""\n    from fedpgp.config import parse\n',
        "imports config",
    ),
    "upwards for types alone": (
        "core/tree.py",
        '"""Trees."""\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fedpgp.clip import model\n',
        "imports clip",
    ),
    "the public API": ("bench/step.py", '"""Step."""\nimport fedpgp\n', "imports the public API"),
    "relative": ("clip/text.py", '"""Text."""\nfrom . import model\n', "relative import"),
    "loose module": ("helpers.py", '"""Helpers."""\n', "no rule covers it"),
    "new package": ("utils/text.py", '"""Text."""\n', "no rule covers it"),
    "heavy library": ("federation/server.py", '"""Server."""\nimport ray\n', "imports ray"),
    "late import": (
        "federation/server.py",
        '"""Server."""\ndef run():\n    """Run."""\n    from fedpgp.methods import base\n',
        "imports fedpgp.methods.base inside a function",
    ),
    "silent": ("core/tree.py", "X = 1\n", "does not say what it is for"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_violation_is_found(kind, tmp_path):
    file, content, told = KINDS[kind]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    assert any(told in line for line in violations(tmp_path))


def test_a_tree_without_violations_is_silent(tmp_path):
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "rows.py").write_text('"""Rows."""\nfrom fedpgp.core import files\n')
    assert violations(tmp_path) == []
