"""The pages of projects/IGVG: all rows, three seeds each, and a summary that fits its tables."""

import re
from collections import Counter

import pytest

from tests.scripts import ROOT

PAGES = {
    name: (ROOT / "projects" / "IGVG" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("RESULTS", "RESULTS-shapes_twice")
}
SECTIONS, TWICE = (
    dict(re.findall(r"^## ([^,:\n]+)[^\n]*\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    for page in PAGES.values()
)
NUMBERS = [(SECTIONS, number) for number in "5678"] + [(TWICE, "5")]


def rows(text):
    """Tables of a section, each a list of rows of cells without its head."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    lines = [table.strip().splitlines()[2:] for table in tables]
    return [[[c.strip() for c in line.strip("|").split("|")] for line in table] for table in lines]


@pytest.mark.parametrize(
    "sections, name",
    [(SECTIONS, x) for x in ("Table 5", "Table 6", "Table 7", "Table 8", "Fig. 4", "Findings")]
    + [(TWICE, "Table 5")],
)
def test_every_row_has_three_seeds_and_the_files_it_names(sections, name):
    values, differences = rows(sections[name])
    findings = list((ROOT / "projects" / "IGVG" / "configs" / "findings").glob("*.yaml"))
    expected = {"Fig. 4": 3, "Findings": 1 + len(findings)}.get(name, 4)
    assert len(values) == expected and len(differences) >= len(values) - 1
    for row in values:
        assert row[-1] == "3", row
        for config in row[1].split(", "):
            path = f"projects/IGVG/configs/{config}.yaml"
            assert config == "full" or (ROOT / path).is_file()


@pytest.mark.parametrize("sections, number", NUMBERS)
def test_the_summary_counts_what_the_tables_say(sections, number):
    # First the steps from row to row; the paper's columns are the first four.
    steps = rows(sections[f"Table {number}"])[1][:3]
    found = Counter(re.search("holds|reversed|noise|tie", c)[0] for r in steps for c in r[1:5])
    summary = {row[0]: [int(cell) for cell in row[1:]] for row in rows(sections["What holds"])[0]}
    assert summary[number] == [12, *(found[k] for k in ("holds", "reversed", "noise", "tie")), 0]


def test_what_helps_is_higher_somewhere_and_lower_nowhere():
    found = {row[0].split(", ")[1]: " ".join(row[1:]) for row in rows(SECTIONS["Findings"])[1]}
    said = dict(
        re.findall(r"^- ([^:\n]+): (.*(?:higher|lower|noise).*)$", SECTIONS["What holds"], re.M)
    )
    assert said.keys() == found.keys()
    for name, cells in found.items():
        for word in ("higher", "lower"):
            part = re.search(f"{word}: ([^;]*)", said[name])
            assert cells.count(f"**{word}**") == (part[1].count(",") + 1 if part else 0), name
    helpful = [name for name, cells in found.items() if "higher" in cells and "lower" not in cells]
    assert f"lower nowhere: {', '.join(helpful) or 'none'}." in SECTIONS["What holds"]


def test_the_ledger_says_the_same():
    readme = (ROOT / "projects" / "IGVG" / "README.md").read_text(encoding="utf-8")
    table = rows(SECTIONS["Findings"])[1]
    assert len(table) == 11 and "Eleven choices" in readme and "Eight lower F1score" in readme
    assert sum("**lower**" in row[1] for row in table) == 8
    cells = {row[0].split(", ")[1]: row[1:] for row in table}
    assert all("higher" not in "".join(cells[name]) for name in ("pool max", "attention layer"))
    assert cells["text score mean"][0].startswith("+0.8 ") and "F1score +0.8" in readme
    assert cells["text score mean"][4].startswith("+1.0 ") and "mask AP50 +1.0" in readme


def test_the_readme_says_what_the_longer_runs_found():
    readme = (ROOT / "projects" / "IGVG" / "README.md").read_text(encoding="utf-8")
    said = re.search(r"At twice the length.*?\n\n", readme, re.S)[0].replace("\n", " ")
    names = ("separate models", "+ multi-task", "+ instance-aware", "full model")
    values = {row[0]: [cell.split(" ")[0] for cell in row[2:]] for row in rows(TWICE["Table 5"])[0]}
    for metric, column in (("F1score", 0), ("box AP50", 5), ("gIoU", 2)):
        *others, full = (values[name][column] for name in names)
        assert f"{metric} {full} against {', '.join(others)}" in said
    summary = TWICE["What holds"]
    assert "F1score: above separate models, + multi-task, + instance-aware\n" in summary
    assert "gIoU: not separable from separate models, + multi-task, + instance-aware\n" in summary


@pytest.mark.parametrize("page, number", [("RESULTS", 2), ("RESULTS-shapes_twice", 1)])
def test_figures_are_there(page, number):
    figures = re.findall(r"\]\((images/[^)]+)\)", PAGES[page])
    assert len(figures) == number
    assert all((ROOT / "projects" / "IGVG" / figure).is_file() for figure in figures)
