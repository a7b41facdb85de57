"""Imports go in one direction, and the light ones stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import landscape

PACKAGE = Path(landscape.__file__).parent

# Who may import what of ours. `analyses` and `experiments` never meet: checkpoints on disk are the
# only thing that passes between making a run and studying it.
MAY_IMPORT = {
    "maths": set(),
    "states": set(),
    "execution": set(),
    "plots": set(),
    "datasets": set(),
    "models": set(),
    "results": {"execution"},
    "task": {"states"},
    "formats": {"states"},
    "checkpoints": {"formats", "states"},
    "families": {"directions", "states", "maths"},
    "directions": {"states"},
    "classic": {"results"},
    "children": {"analyses", "checkpoints"},
    "examples": {"task"},
    "engine": {"task"},
    "strategy": {"engine", "examples", "task"},
    "normalisation": {"engine", "states"},
    "evaluation": {
        "engine", "examples", "execution", "families", "normalisation", "repair", "results",
        "states", "strategy", "task",
    },
    "repair": {"engine", "examples", "normalisation", "states", "task"},
    "symmetries": {"engine", "maths", "states", "tracing"},
    "tracing": {"maths", "states"},
    "descent": {"engine", "examples", "states", "task"},
    "selection": {"engine", "examples", "task"},
    "activations": {"engine", "examples", "selection", "states", "task"},
    "products": {"engine", "examples", "states", "task"},
    "example_gradients": {"engine", "states", "task"},
    "likelihoods": set(),
    "analyses": {
        "activations", "descent", "engine", "evaluation", "example_gradients", "examples",
        "execution", "families", "likelihoods", "maths", "products", "results", "selection",
        "states", "symmetries", "task",
    },
    "experiments": {
        "checkpoints", "datasets", "engine", "examples", "execution", "maths", "normalisation",
        "results", "states", "task",
    },
    "tables": {"analyses", "results"},
}  # fmt: skip
FREE = {"cli", "demo", "__init__", "__main__"}
FILES = sorted(PACKAGE.rglob("*.py"))


def unit_of(path):
    """The row of the table that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The units of ours that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "landscape" and "." in name:
                yield name.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_in_one_direction(path):
    unit = unit_of(path)
    if unit in FREE:
        return
    assert unit in MAY_IMPORT, f"{path} is in no row of the table"
    wrong = set(imported(path)) - MAY_IMPORT[unit] - {unit}
    assert not wrong, f"{unit} must not import {', '.join(sorted(wrong))}"


def test_the_table_has_no_circle():
    def below(unit, seen=()):
        assert unit not in seen, f"a circle: {' -> '.join((*seen, unit))}"
        for other in MAY_IMPORT[unit]:
            below(other, (*seen, unit))

    for unit in MAY_IMPORT:
        below(unit)


def test_analyses_read_no_files():
    for path in (PACKAGE / "analyses").glob("*.py"):
        text = path.read_text()
        assert "open(" not in text
        assert "import sweep" not in text


def test_importing_the_package_and_its_help_wait_for_nothing():
    code = (
        "import sys, landscape, landscape.cli\n"
        "try: landscape.cli.main(['interpolate', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'xarray', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_public_name_can_be_had():
    for name in landscape.__all__:
        assert getattr(landscape, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = landscape.nothing
    assert set(landscape.__all__) == set(dir(landscape))


def test_the_names_for_type_checkers_are_those_at_run_time():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    named = {alias.asname for node in block.body for alias in node.names}
    assert named == set(landscape.__all__) - {"__version__"}
