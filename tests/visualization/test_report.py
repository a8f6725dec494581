"""The HTML report: complete, escaped, self-contained, and content with whatever is there."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from igvg_d2.visualization import build_report
from igvg_d2.visualization.charts import line_chart, nice_ticks
from igvg_d2.visualization.report import TEMPLATES, duration, load_curves, number

_VOID = {"meta", "img", "br"}


class _Checker(HTMLParser):
    """Collects tags and fails on wrong nesting."""

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def check_html(text):
    """Parse a page; returns the checker."""
    checker = _Checker()
    checker.feed(text)
    assert checker.stack == []
    return checker


@pytest.fixture
def run_dir(tmp_path):
    """An output directory as a training run leaves it."""
    root = tmp_path / "my <run>"
    evaluation = root / "inference" / "toy_val"
    images = root / "images" / "toy_val"
    for folder in (evaluation, images):
        folder.mkdir(parents=True)
    lines = [{"iteration": i, "total_loss": 5.0 - i, "loss_ce": 1.0, "lr": 0.1} for i in range(4)]
    lines += [{"iteration": i, "toy_val/gres/gIoU": 61.25, "a_test/gres/gIoU": 5} for i in (1, 3)]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"iteration": 4, "total'
    (root / "metrics.json").write_text(text)
    report = {
        "dataset": "toy_val",
        "num_samples": 1234,
        "results": {
            "gres": {
                "gIoU": 61.25,
                "N_acc": None,
                "T_acc": 93.75,
                "hallucination": 27.25,
                "hallucination_lookalike": 36.5,
                "gIoU_0": 70.5,
                "gIoU_3plus": 12.5,
                "count_0": 9,
            },
            "instance": {"mask_AP": 33.0},
            "gres_calibrated": {"gIoU_0": 71.25},
        },
        "breakdown": {"kind": {"relation": {"samples": 3, "gIoU": 10.0}}},
        "calibration": {"guarantee": "at most 10 %", "assumption": "holds <there>"},
    }
    (evaluation / "toy_val_metrics.json").write_text(json.dumps(report))
    summary = {"samples_seen": 128000, "train_wall_seconds": 812.0, "command": "x --y <z>"}
    (root / "run_summary.json").write_text(json.dumps(summary))
    (root / "config.yaml").write_text("A: '<script>alert(1)</script>'")
    Image.fromarray(np.zeros((30, 2000, 3), np.uint8)).save(images / "a.jpg")
    entry = {
        "file": "a.jpg",
        "sample_id": "1_0",
        "expression": '"><script>alert(2)</script>',
        "case": "worst",
        "cardinality": "3plus",
    }
    index = {"dataset": "toy_val", "images": [entry]}
    (images / "index.json").write_text(json.dumps(index))
    return root


def test_report_holds_everything(run_dir):
    path = build_report(str(run_dir))
    text = (run_dir / "report.html").read_text()
    assert path == str(run_dir / "report.html")
    checker = check_html(text)
    assert "script" not in checker.tags
    for expected in (
        "my &lt;run&gt;",
        "x --y &lt;z&gt;",
        "61.25",
        "<td>70.50</td>",
        "12.50",
        "33.00",
        "1,234 expressions",
        "128,000",
        "13 min 32 s",
        "relation",
        "3 or more targets: worst cases",
        "total loss",
        "toy_val, percent",
    ):
        assert expected in text, expected
    assert "toy_val: at most 10 %; holds &lt;there&gt;" in text
    assert "71.25" not in text, "the model's own decision stands by number of targets"
    absent = text[text.index("Expressions without target") :]
    absent = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", absent[: absent.index("</table>")])
    assert absent[1] == "answered although nothing matches"
    columns = ["data set", "task", "T_acc", "all", "absent", "lookalike", "unnamed"]
    assert absent[2:] == columns + ["toy_val", "gres", "93.75", "27.25", "–", "36.50", "–"]
    assert checker.tags.count("polyline") >= 4
    assert text.index("toy_val, percent") < text.index("a_test, percent")


HOSTILE = '"><script>alert(3)</script>\ud800\x1b'


def test_nothing_that_stands_in_a_file_is_markup(run_dir):
    """Strings where numbers are expected, names, keys, and half of a surrogate pair."""
    report = {"dataset": HOSTILE, "num_samples": HOSTILE, "evaluator": HOSTILE}
    report["results"] = {"gres": {"gIoU": HOSTILE, "gIoU_0": HOSTILE, HOSTILE: 1}, HOSTILE: {}}
    report["breakdown"] = {HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}}
    path = run_dir / "inference" / "toy_val" / "x_metrics.json"
    path.write_text(json.dumps(report))
    lines = [{"iteration": i, HOSTILE: 1.0, f"loss_{HOSTILE}": 2.0, "lr": HOSTILE} for i in (1, 2)]
    (run_dir / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    (run_dir / "run_summary.json").write_text(json.dumps({HOSTILE: HOSTILE, "command": HOSTILE}))
    index_path = run_dir / "images" / "toy_val" / "index.json"
    index = json.loads(index_path.read_text())
    # Keys of the page's own do not come from the file.
    index["images"][0].update(expression=HOSTILE, link="javascript:1", source="javascript:2")
    index_path.write_text(json.dumps({**index, "dataset": HOSTILE}))
    build_report(str(run_dir))
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    checker = check_html(text)
    assert "script" not in checker.tags and text.count("&lt;script&gt;alert(3)") > 10
    assert not any(link.startswith("javascript:") for link in checker.links)
    assert "\\ud800" in text and text.rstrip().endswith("</html>")


def test_report_needs_no_network(run_dir):
    build_report(str(run_dir))
    links = check_html((run_dir / "report.html").read_text()).links
    assert any(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not any(re.match(r"(https?:)?//", link) for link in links)
    build_report(str(run_dir), embed=False)
    links = check_html((run_dir / "report.html").read_text()).links
    assert "images/toy_val/a.jpg" in links
    assert not any(link.startswith("data:") for link in links)


def test_report_of_an_empty_folder_and_of_none(tmp_path):
    build_report(str(tmp_path), title="nothing yet")
    assert "nothing yet" in (tmp_path / "report.html").read_text()
    with pytest.raises(FileNotFoundError, match="OUTPUT_DIR"):
        build_report(str(tmp_path / "absent"))


def test_broken_json_is_named(run_dir):
    (run_dir / "run_summary.json").write_text("{")
    with pytest.raises(ValueError, match="run_summary.json is not valid JSON"):
        build_report(str(run_dir))


def test_resumed_curves_keep_the_last_value(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"iteration": 20, "a": 1.0}\n{"iteration": 40, "a": 2.0}\n{"iteration": 20, "a": 3.0}\n'
    )
    assert load_curves(str(path))["a"] == [(20, 3.0), (40, 2.0)]
    assert load_curves(str(tmp_path / "absent.json")) == {}


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 100, [0, 20, 40, 60, 80, 100]), (3, 3, None), (-0.4, 0.31, None), (1e-9, 2e-9, None)],
)
def test_nice_ticks_cover_the_range(low, high, expected):
    ticks = nice_ticks(low, high, 6)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
    assert expected is None or ticks.tolist() == expected
    assert all(len(f"{tick:g}") <= 7 for tick in ticks)


def test_chart_leaves_out_what_is_not_finite():
    draw = TEMPLATES.get_template("macros.html").module.line_chart
    points = [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]
    chart = draw(line_chart("a<b", {"x": points}))
    check_html(chart)
    assert "a&lt;b" in chart and "nan" not in chart and "inf" not in chart
    # The edges of the axes: 46 and 506 pixels from the left, 224 and 8 from the top.
    assert 'points="46.0,224.0 506.0,8.0"' in chart
    assert line_chart("t", {"x": [(0, float("nan"))], "y": []}) == {}
    check_html(draw(line_chart("one point", {"x": [(5, 1.0)]}, small=True)))


def test_numbers_and_durations():
    assert [number(v) for v in (None, float("nan"), 3, 12000, 1.234, "x")] == [
        "–",
        "–",
        "3",
        "12,000",
        "1.23",
        "x",
    ]
    assert [duration(s) for s in (3.21, 59.96, 125, 3720)] == [
        "3.2 s",
        "60.0 s",
        "2 min 05 s",
        "1 h 02 min",
    ]
