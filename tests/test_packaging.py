"""What the package imports is what it says it needs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: names on the package index that differ from the name of the module
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "scikit-image": "skimage"}


def modules_of(requirements: list[str]) -> set[str]:
    names = (re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in requirements)
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported() -> dict[str, str]:
    """Top-level module -> a file that imports it, over the library and the jobs."""
    found: dict[str, str] = {}
    for path in (*ROOT.glob("anodiff/**/*.py"), *ROOT.glob("pipelines/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found.update({name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names})
    return found


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for group in project["optional-dependencies"].values() for requirement in group]
    declared = modules_of([*project["dependencies"], *extras])
    others = {name: path for name, path in imported().items() if name not in sys.stdlib_module_names}
    others.pop("anodiff")
    missing = {name: path for name, path in others.items() if name not in declared}
    assert not missing
    assert {"torch", "numpy", "PIL", "yaml"} <= others.keys()  # the search itself works


def test_what_is_tested_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = modules_of([line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line])
    assert modules_of(project["dependencies"]) <= pins


def test_the_tests_of_the_light_extras_are_run_where_the_project_is_tested() -> None:
    """`make test` installs ``dev`` alone: what is not in it is skipped there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = modules_of([line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line])
    (own,) = [each for each in extras["dev"] if each.startswith("anodiff[")]
    included = own.removeprefix("anodiff[").removesuffix("]").split(",")
    assert {"onnx", "bundle", "dicom"} <= set(included) <= set(extras)
    assert modules_of([each for name in included for each in extras[name]]) <= pins
