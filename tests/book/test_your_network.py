"""The stored results of benchmarks/your_network.py: what was chosen, and that all runs of a method are there."""

from __future__ import annotations

import statistics

import pytest
import scripts

from minicl import files


def test_what_was_tested_was_chosen_on_validation_samples_of_other_seeds() -> None:
    script = scripts.load("benchmarks/your_network.py")
    stored = files.read_json(script.FILE)
    runs = {tuple(run["job"]): run for key, run in stored.items() if key != "settings"}
    for method, settings in script.METHODS.items():
        tested = [job for job in runs if job[0] == method and job[-1] == "test"]
        assert sorted(job[3] for job in tested) == [0, 1, 2]
        assert {job[3] for job in tested}.isdisjoint(script.SEARCHED)
        tried = {
            setting: [runs[job]["ACC"] for job in runs if job[:2] == (method, setting) and job[-1] == "valid"]
            for setting in settings
        }
        if len(settings) > 1:
            assert all(len(scores) == len(script.SEARCHED) for scores in tried.values())
            assert {job[1] for job in tested} == {max(tried, key=lambda name: statistics.mean(tried[name]))}
    for run in runs.values():
        assert run["ACC"] == pytest.approx(statistics.mean(run["accuracy"][-1]))
