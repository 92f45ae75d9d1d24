"""How modules import each other, beyond what the contracts in pyproject.toml say."""

from __future__ import annotations

import graphlib

import pytest

PACKAGES = ("smash_base", "smash_search", "smash_targets", "smash_export")


def test_no_module_imports_itself_through_others() -> None:
    grimp = pytest.importorskip("grimp", reason="grimp comes with the extra dev")
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)
    modules = graph.modules
    imports = {name: graph.find_modules_directly_imported_by(name) & modules for name in modules}
    assert imports["smash_export.measure.bench"] >= {"smash_export.measure.timing"}  # the graph is not empty
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(error.args[1]))
