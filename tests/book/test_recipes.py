"""The recipes of the page "Your own network": each prints what is stored, or what is stored is of this very text."""

from __future__ import annotations

import re
import sys

import pytest
import scripts

sys.path.insert(0, str(scripts.ROOT / "book"))
import recipes

names = pytest.mark.parametrize("name", recipes.NEEDS)


@names
def test_what_is_stored_was_printed_by_this_text(name: str) -> None:
    output, of = recipes.stored(name)
    assert of == recipes.digest(name)
    assert output.strip()


@names
def test_a_recipe_runs_where_its_packages_are(name: str) -> None:
    if recipes.missing(name):
        pytest.skip(f"{', '.join(recipes.missing(name))} not installed")
    output = recipes.output_of(name)
    numbers = re.compile(r"\d+(\.\d+)?%?")
    assert numbers.sub("#", output) == numbers.sub("#", recipes.stored(name)[0])  # another processor rounds otherwise


def test_the_page_says_that_an_output_is_stored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.NEEDS, "export_onnx", ("no_such_package",))
    recipes.show("export_onnx")
    said = capsys.readouterr().out
    assert said.startswith("(stored output: no_such_package not there)\n")
    assert recipes.stored("export_onnx")[0] in said


def test_every_recipe_is_on_the_page() -> None:
    page = (scripts.ROOT / "book" / "your_network.ipynb").read_text()
    for name in recipes.NEEDS:
        assert f"recipes/{name}.py" in page
        assert f'show(\\"{name}\\")' in page
    assert {path.stem for path in recipes.FOLDER.glob("*.py")} == {*recipes.NEEDS, "__init__", "__main__"}
