"""The figure of docs/cost.md, see dev/measure_cost.py."""

import matplotlib

matplotlib.use("Agg")
from cost_tables import GPUS_PER_NODE, PAPER_BATCH, scale  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

# Of Okabe and Ito, told apart by people who see few colours.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#007A5A"
_MARKS = {_BLUE: "o", _ORANGE: "s", _GREEN: "^"}


def draw(content, path):
    """Six panels as a PNG of 1300 pixels; labels are read at 400, too."""
    style = {"font.size": 19, "lines.linewidth": 3.5, "lines.markersize": 11}
    style.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    with plt.rc_context({**style, "grid.color": "#DDDDDD", "legend.frameon": False}):
        figure, axes = plt.subplots(3, 2, figsize=(13, 16.5), dpi=100)
        panels = (_size, _queries, _batch, _photo, _data, _scale)
        for panel, ax in zip(panels, axes.flat):
            panel(ax, content)
            ax.set_ylim(bottom=0)
            ax.set_axisbelow(True)
        figure.tight_layout(h_pad=2.0, w_pad=1.5)
        figure.savefig(path, pil_kwargs={"optimize": True})
        plt.close(figure)


def _line(ax, xs, ys, color, label):
    ax.plot(xs, ys, color=color, marker=_MARKS[color], label=label)


def _name(ax, title, x, y, legend=True):
    ax.set_title(title, fontsize=21, fontweight="bold", loc="left")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if legend:
        ax.legend(loc="upper left", fontsize=18, handlelength=1.5)


def _size(ax, content):
    rows = content["size"]["rows"]
    sides = [row["size"][0] for row in rows]
    encoder = [row["parts"]["encoder"] for row in rows]
    whole = [sum(row["parts"].values()) for row in rows]
    _line(ax, sides, whole, _BLUE, "whole pass")
    _line(ax, sides, encoder, _ORANGE, "encoder")
    _name(ax, "Image size", "side in pixels", "seconds")


def _queries(ax, content):
    rows = content["queries"]["rows"]
    numbers = [int(row.get("variant", "10").split()[-1]) for row in rows]
    groups = {
        "post-processing": (("post-processing",), _BLUE),
        "decoder, heads": (("decoder", "heads"), _ORANGE),
        "query generation": (("query generation",), _GREEN),
    }
    for label, (names, color) in groups.items():
        ms = [1e3 * sum(row["parts"][name] for name in names) for row in rows]
        _line(ax, numbers, ms, color, label)
    _name(ax, "Queries", "object queries", "milliseconds")
    ax.set_ylim(top=1.45 * ax.get_ylim()[1])


def _batch(ax, content):
    rows = content["batch"]["rows"]
    _line(ax, [r["batch"] for r in rows], [r["cpu_seconds"] for r in rows], _BLUE, "")
    _name(ax, "Expressions per image", "in one call", "seconds", legend=False)


def _photo(ax, content):
    rows = content["photo"]["rows"]
    sizes = [[int(side) for side in row["photo"].split("x")] for row in rows]
    pixels = [height * width / 1e6 for height, width in sizes]
    _line(ax, pixels, [1e3 * row["cpu_seconds"] for row in rows], _BLUE, "loader")
    _line(ax, pixels, [1e3 * row["decode_seconds"] for row in rows], _ORANGE, "JPEG alone")
    _name(ax, "Photos", "megapixels", "ms per sample")


def _data(ax, content):
    rows = content["data"]["rows"]
    numbers = [row["expressions"] / 1e3 for row in rows]
    _line(ax, numbers, [row["mib"] for row in rows], _BLUE, "a process")
    _line(ax, numbers, [row["worker_mib"] for row in rows], _ORANGE, "a worker, in addition")
    _name(ax, "Data set", "thousand expressions", "MiB")


def _scale(ax, content):
    numbers = [8, 16, 32, 64, 128]
    points = [scale(content, n, PAPER_BATCH / n) for n in numbers]
    ticks = range(len(numbers))
    slow = [scale(content, n, PAPER_BATCH / n, "slow") for n in numbers]
    _line(ax, ticks, [1e3 * x["all_reduce"] for x in slow], _GREEN, "all-reduce, slow")
    _line(ax, ticks, [1e3 * x["all_reduce"] for x in points], _BLUE, "all-reduce, fast")
    _line(ax, ticks, [1e3 * x["compute"] for x in points], _ORANGE, "computing")
    ax.set_xticks(ticks, [str(n) for n in numbers])
    _name(ax, f"Batch {PAPER_BATCH}, by arithmetic", f"GPUs, {GPUS_PER_NODE} a node", "ms per step")
    ax.get_legend().set_loc("center right")
