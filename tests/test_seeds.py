"""The suite's own seeds: which ones MINICL_SEED names, and that every test runs with each of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import seeds
import torch


def test_what_the_variable_names() -> None:
    assert seeds.read("3") == [3]
    assert seeds.read("0-4") == [0, 1, 2, 3, 4]
    assert seeds.read("7-7") == [7]
    assert len({tuple(seeds.read("any")) for _ in range(20)}) > 1
    for wrong in ("", "-1", "4-2", "one", "1-", "10000", "0-10000", "1.5"):
        with pytest.raises(ValueError, match=f"MINICL_SEED is '{wrong}'; allowed: a number below 10000, a range"):
            seeds.read(wrong)


@pytest.mark.parametrize(("text", "expected"), [("2-4", [2, 3, 4]), ("5", [5])])
def test_every_test_runs_with_each_seed(
    text: str, expected: list[int], suite_seed: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the conftest.py of this folder, in a session of pytest within this one."""
    monkeypatch.setenv(seeds.VARIABLE, text)
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile("""
        import pytest, seeds, torch

        @pytest.fixture(scope="module")
        def for_all():
            return torch.rand(2)

        def test_one(for_all):
            assert torch.initial_seed() == seeds.current()
            with open("log", "a") as log:
                print(seeds.current(), file=log)
        """)
    found = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider")
    found.assert_outcomes(passed=len(expected))
    assert [int(line) for line in Path("log").read_text().splitlines()] == expected
    assert seeds.read(os.environ[seeds.VARIABLE]) == expected  # which the processes of pytest-xdist inherit
    seeds.use(suite_seed)


def test_a_part_of_the_long_tables_is_taken_and_everything_else(
    suite_seed: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(seeds.VARIABLE, str(suite_seed))
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("row", range(90))
        def test_long(row): pass

        @pytest.mark.parametrize("row", range(7))
        def test_short(row): pass

        @pytest.mark.patient
        def test_patient(): pass
        """)

    def names(*options: str) -> list[str]:
        passed, _, _ = pytester.inline_run("-p", "no:xdist", "-p", "no:cacheprovider", *options).listoutcomes()
        return [report.nodeid.partition("::")[2] for report in passed]

    assert len(names()) == 90 + 7 + 1
    parts = [names("--every", "3") for _ in range(2)]
    assert parts[0] == parts[1], "the same in each run and in each process"
    assert [name for name in parts[0] if "long" not in name] == [f"test_short[{row}]" for row in range(7)]
    assert 20 < len(parts[0]) - 7 < 40
    seeds.use(suite_seed)


def test_data_depends_on_the_seed_and_on_nothing_else(suite_seed: int) -> None:
    assert suite_seed == seeds.current() == torch.initial_seed()
    first = torch.rand(3, generator=seeds.generator(4))
    assert torch.equal(first, torch.rand(3, generator=seeds.generator(4)))
    assert not torch.equal(first, torch.rand(3, generator=seeds.generator(5)))
    other = seeds.of(4)
    try:
        seeds.use(suite_seed + 1)
        assert seeds.of(4) != other
    finally:
        seeds.use(suite_seed)
