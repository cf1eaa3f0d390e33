"""The stored results of the search: complete, chosen on validation samples, and true."""

from __future__ import annotations

import pytest
import scripts

from minicl import files

search = scripts.load("benchmarks/regularization_search.py")
runs = files.read_json(search.RESULTS)


def test_every_run_is_there() -> None:
    expected = set()
    for stream in search.STREAMS:
        for method in [*search.METHODS, *search.BOUNDS]:
            value = 0.0
            if method in search.METHODS:
                for value in search.METHODS[method][1]:
                    expected |= {search.key(method, stream, value, s, "valid") for s in search.SEARCH_SEEDS}
                value = search.chosen(runs, method, stream)  # the best on validation samples, and no other, was tested
            expected |= {search.key(method, stream, value, s, "test") for s in search.TEST_SEEDS}
    assert set(runs) == expected


@pytest.mark.parametrize(
    "run",
    [("EWC", "split-task", 0, "test"), ("SI", "split-domain", 100, "valid"), ("AGSCL", "split-task", 1, "test")],
)
def test_a_sample_of_the_runs_comes_out_the_same(run: tuple[str, str, int, str]) -> None:
    method, stream, seed, part = run
    value = search.chosen(runs, method, stream)
    stored = runs[search.key(method, stream, value, seed, part)]
    found = search.measure(method, stream, value, seed, part)
    for name in ("ACC", "BWT", "new"):  # another processor may round otherwise
        assert found[name] == pytest.approx(stored[name], abs=0.03)
    assert found["bytes"] == stored["bytes"]


def test_the_tables_of_split_mnist_are_those_of_its_runs() -> None:
    mnist = scripts.load("benchmarks/split_mnist.py")
    stored = files.read_json(mnist.RESULTS)
    assert stored["epochs"] == mnist.EPOCHS
    known = {**mnist.METHODS, **mnist.VARIANTS}
    for run in stored["runs"]:
        assert run["method"] in known
        last = run["accuracy"][-1]
        assert len(last) == mnist.TASKS
        assert run["ACC"] == pytest.approx(sum(last) / mnist.TASKS)
    for name, table in (("split_mnist.md", mnist.table), ("split_mnist_variants.md", mnist.variants_table)):
        assert mnist.RESULTS.with_name(name).read_text(encoding="utf-8") == table(stored["runs"])
    for method in ("fine-tuning", "EWC", "online EWC", "SI", "MAS", "LwF", "joint"):
        for scenario in mnist.PUBLISHED[method]:
            seeds = [r["seed"] for r in stored["runs"] if (r["method"], r["scenario"]) == (method, scenario)]
            assert len(seeds) == len(set(seeds)) >= 3
