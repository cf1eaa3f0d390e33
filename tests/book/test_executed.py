"""What `make notebooks` has run is taken over by `make book`, if it is a run of just this."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pytest
import scripts
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PATH = Path("book/tiny.ipynb")


@pytest.fixture
def conftest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """book/conftest.py, whose records go elsewhere."""
    monkeypatch.syspath_prepend(str(scripts.ROOT / "tools"))
    module = scripts.load("book/conftest.py", "conftest_of_the_book")
    monkeypatch.setattr(module.executed, "FOLDER", tmp_path / "executed")
    return module


def tiny() -> Any:
    return new_notebook(cells=[new_markdown_cell("Words."), new_code_cell("print(1)"), new_code_cell("2")])


def run(conftest: ModuleType, failing: int | None = None) -> None:
    """What nbval does with the cells of a notebook, as the hooks see it."""
    nb = tiny()
    file = SimpleNamespace(stash=pytest.Stash(), nb=nb)
    for number, cell in enumerate(one for one in nb.cells if one.cell_type == "code"):
        outputs = [new_output("stream", name="stdout", text=f"{number}\n")]
        item = SimpleNamespace(cell=cell, parent=file, path=PATH, test_outputs=outputs)
        answer(conftest.pytest_runtest_protocol(item), None)
        report = SimpleNamespace(passed=number != failing)
        for when in ("setup", "call", "teardown"):
            call = SimpleNamespace(when=when, duration=0.5)
            answer(conftest.pytest_runtest_makereport(item, call), report)


def answer(hook: Any, result: object) -> None:
    """Let a hook that wraps another see what that one came to; it must pass it on."""
    next(hook)
    with pytest.raises(StopIteration) as ended:
        hook.send(result)
    assert ended.value.value is result


def test_a_run_is_taken_over_with_its_outputs(conftest: ModuleType) -> None:
    now = conftest.executed.fingerprint()
    assert conftest.executed.take(PATH, tiny(), now) is None
    run(conftest)
    notebook = tiny()
    assert conftest.executed.take(PATH, notebook, now) == 1.0
    assert [cell.outputs[0].text for cell in notebook.cells[1:]] == ["0\n", "1\n"]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]


def test_another_state_other_code_and_a_cell_that_fails_count_for_nothing(conftest: ModuleType) -> None:
    now = conftest.executed.fingerprint()
    run(conftest, failing=1)
    assert conftest.executed.take(PATH, tiny(), now) is None
    run(conftest)
    assert conftest.executed.take(PATH, tiny(), "another") is None
    other = tiny()
    other.cells[1].source = "print(2)"
    assert conftest.executed.take(PATH, other, now) is None
    assert other.cells[1].outputs == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """tools/fill_cache.py over two notebooks in a folder of their own."""
    monkeypatch.syspath_prepend(str(scripts.ROOT / "tools"))
    module = scripts.load("tools/fill_cache.py")
    (tmp_path / "book").mkdir()
    for name in ("one", "two"):
        nbformat.write(tiny(), tmp_path / "book" / f"{name}.ipynb")
    for needed in ("_config.yml", "requirements.txt", "book/conftest.py", "tools/executed.py"):
        (tmp_path / needed).parent.mkdir(exist_ok=True)
        shutil.copy(scripts.ROOT / needed, tmp_path / needed)
    for name, place in (("ROOT", "."), ("CACHE", "cache"), ("FINGERPRINT", "fingerprint")):
        monkeypatch.setattr(module, name, tmp_path / place)
    monkeypatch.setattr(module.executed, "ROOT", tmp_path)
    monkeypatch.setattr(module.executed, "FOLDER", tmp_path / "_build" / "executed")
    monkeypatch.setattr("sys.argv", ["fill_cache", "--jobs", "1"])
    return module


def test_only_what_has_no_valid_result_is_run(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def nbval(paths: list[Path], jobs: int, timeout: int) -> int:
        ran.append([path.stem for path in paths])
        for path in paths:
            cells = [{"source": cell.source, "outputs": []} for cell in tiny().cells[1:]]
            cache.executed.keep(path, cells, 1.0, cache.executed.fingerprint())
        return 0

    monkeypatch.setattr(cache, "run", nbval)
    assert [cache.main(), cache.main()] == [0, 0]
    assert ran == [["one", "two"]]
    changed = tiny()
    changed.cells[1].source = "print(3)"
    nbformat.write(changed, cache.ROOT / "book" / "two.ipynb")
    assert cache.main() == 1, "nbval kept nothing that is valid for the changed one"
    assert ran[1:] == [["two"]]


def test_a_wrong_factor_is_refused_before_anything_is_dropped(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.CACHE.mkdir()
    (cache.CACHE / "a result").touch()
    cache.FINGERPRINT.write_text("of another state")
    monkeypatch.setenv("MINICL_TIMEOUT_FACTOR", "fast")
    with pytest.raises(SystemExit, match="MINICL_TIMEOUT_FACTOR is 'fast'"):
        cache.main()
    assert (cache.CACHE / "a result").exists()


def test_a_notebook_that_fails_is_named(cache: Any, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tiny()
    broken.cells[2].source = "1 / 0"
    nbformat.write(broken, cache.ROOT / "book" / "two.ipynb")
    assert cache.main() == 1
    out, err = capfd.readouterr()
    assert "ZeroDivisionError" in out
    assert err.splitlines()[-1] == "failed: book/two.ipynb", "the other one has run, and is kept"
