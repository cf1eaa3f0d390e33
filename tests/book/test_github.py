"""What the project is to those who find it: workflows, forms, how to cite, the paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import scripts
import yaml
from check_jsonschema.cli import main as check_jsonschema
from click.testing import CliRunner

ROOT = scripts.ROOT
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config")


def against(schema: str, *files: Path) -> str:
    """What the schema of GitHub, as check-jsonschema ships it, has against files; "" if nothing."""
    ran = CliRunner().invoke(check_jsonschema, ["--builtin-schema", f"vendor.{schema}", *map(str, files)])
    return "" if ran.exit_code == 0 else ran.output or repr(ran.exception)


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: dict[str, Any]) -> list[str]:
    """Every line that a workflow runs."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [line.strip() for step in steps for line in step.get("run", "").splitlines()]


def test_workflows_have_the_form_that_github_reads() -> None:
    assert {path.stem for path in WORKFLOWS} == {"pages", "test", "weekly"}
    assert against("github-workflows", *WORKFLOWS) == ""


def test_a_workflow_with_a_slip_is_noticed(tmp_path: Path) -> None:
    slip = tmp_path / "slip.yml"
    slip.write_text(WORKFLOWS[0].read_text(encoding="utf-8").replace("runs-on", "run-on"))
    assert "runs-on" in against("github-workflows", slip)


def test_forms_have_the_form_that_github_reads() -> None:
    assert against("github-issue-forms", *FORMS) == ""
    assert against("github-issue-config", ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml") == ""


def test_citation_has_the_form_that_github_reads() -> None:
    assert against("citation-file-format", ROOT / "CITATION.cff") == ""


def test_workflows_make_what_ci_makes() -> None:
    ours = re.findall(r"^make [a-z-]+", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert len(ours) == 3
    theirs = [re.match(r"(make [a-z-]+)|", line)[0] for line in commands(read(WORKFLOWS[1]))]  # type: ignore[index]
    assert [line for line in theirs if line in ours] == ours


def test_workflows_run_what_there_is() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        for line in commands(read(path)):
            if line.startswith("make "):
                words = [word for word in line.split()[1:] if re.fullmatch("[a-z-]+", word)]
                assert set(words) <= targets, line
            for program in re.findall(r"\btools/\w+\.py", line):
                assert (ROOT / program).is_file(), line


def test_windows_runs_the_commands_of_the_readme() -> None:
    """But for the two that open a browser or JupyterLab."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```powershell\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in block[1].splitlines()]
    told = [part.strip() for line in lines if line and not line.startswith("$env:") for part in line.split(" ; ")]
    run = commands({"jobs": {"w": read(WORKFLOWS[1])["jobs"]["windows"]}})
    opening = {"python tools/edition.py lab", "jupyter lab student", "py -3.11 -m venv .venv"}
    assert [line for line in told if line not in run] == [line for line in told if line in opening]


def test_notebooks_go_to_the_branch_that_the_buttons_open() -> None:
    branch = scripts.load("tools/edition.py").BRANCH
    pages = (ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8")
    assert f"--initial-branch {branch}\n" in pages
    assert f'/${{{{ github.repository }}}}" {branch}\n' in pages


def test_front_page_says_how_to_cite_what_the_citation_file_names() -> None:
    front = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    cite = front.partition("## How to cite")[2]
    citation = read(ROOT / "CITATION.cff")
    assert f"title = {{{{{citation['title']}}}}}" in cite
    assert f"author = {{{{{citation['authors'][0]['name']}}}}}" in cite
    assert f"year = {{{citation['date-released'].year}}}" in cite
    assert "<!-- downloads -->" in front  # tools/edition.py publish puts them there


# The paper for the Journal of Open Source Education


@pytest.fixture(scope="module")
def paper() -> tuple[dict[str, Any], str]:
    _, head, text = (ROOT / "paper.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def entries(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return {match[1]: match[0].strip() for match in re.finditer(r"@\w+\{(\w+),.*?\n\}", text, re.DOTALL)}


def test_paper_has_what_the_journal_asks_for(paper: tuple[dict[str, Any], str]) -> None:
    head, text = paper
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} <= set(head)
    known = {place["index"] for place in head["affiliations"]}
    assert all(author["name"] and author["affiliation"] in known for author in head["authors"])
    headings = re.findall(r"^# (.+)$", text, re.MULTILINE)
    assert headings[:2] == ["Summary", "Statement of need"]
    assert headings[-1] == "References"
    assert {"Learning objectives", "Content and instructional design", "Use so far"} <= set(headings)
    assert 250 <= len(text.split()) <= 1000


def test_paper_and_its_references_belong_together(paper: tuple[dict[str, Any], str]) -> None:
    head, text = paper
    listed, book = entries(head["bibliography"]), entries("book/references.bib")
    assert set(re.findall(r"@(\w+)", text)) == set(listed)
    for key in listed.keys() & book.keys():
        assert listed[key] == book[key], "one entry, two texts"


def test_paper_counts_the_notebooks(paper: tuple[dict[str, Any], str]) -> None:
    words = {13: "Thirteen", 14: "Fourteen", 15: "Fifteen", 16: "Sixteen"}
    assert f"{words[len(scripts.NOTEBOOKS)]} notebooks" in paper[1]
