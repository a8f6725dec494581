"""What is trained: rows of the paper's tables, their configs and commands, and who shares a run."""

import dataclasses
import functools
import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import yaml
from detectron2.config import CfgNode

from igvg_d2.engine import setup_config
from igvg_d2.engine.config_checks import check_config, flatten

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "projects" / "IGVG" / "configs"
FULL = "full"
# Options that change no weight of a run; evaluation on the way changes no run.
_UNRELATED = ("OUTPUT_DIR", "MODEL.DEVICE", "SOLVER.NUM_THREADS", "TEST.EVAL_PERIOD")
# The paper's four columns.
PAPER_METRICS = ("F1score", "N_acc", "gIoU", "cIoU")
# Of a row in two models: what the segmentation model answers; detection answers the rest.
SEGMENTATION_METRICS = ("N_acc", "gIoU", "cIoU")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: as the page prints it.
        config: file below ``configs/`` without ending, or "full".
        paper: the paper's F1score, N_acc, gIoU and cIoU in percent, () where it has none.
        segmentation: config of a second model that answers SEGMENTATION_METRICS, or "".
    """

    name: str
    config: str
    paper: Tuple[float, ...] = ()
    segmentation: str = ""

    def config_of(self, metric: str) -> str:
        """The config of the model that answers for a metric."""
        is_second = self.segmentation and metric in SEGMENTATION_METRICS
        return self.segmentation if is_second else self.config

    @property
    def configs(self) -> List[str]:
        """One or two configs."""
        return [name for name in (self.config, self.segmentation) if name]


def _ablation(name: str, config: str, *paper: float, segmentation: str = "") -> Row:
    second = f"ablations/{segmentation}" if segmentation else ""
    return Row(name, f"ablations/{config}", paper, second)


_FULL = Row("full model", FULL, (71.43, 75.87, 72.41, 67.39))
# Numbers of the paper: gRefCOCO val. Fig. 4 is a chart without numbers.
TABLES: Dict[str, Tuple[str, List[Row]]] = {
    "5": (
        "Table 5, core modules",
        [
            _ablation(
                "separate models",
                "modules/detection_only",
                *(65.98, 66.13, 65.03, 64.77),
                segmentation="modules/segmentation_only",
            ),
            _ablation("+ multi-task", "modules/multi_task", 67.13, 69.98, 67.33, 64.90),
            _ablation("+ instance-aware", "modules/instance_aware", 68.42, 71.86, 70.13, 65.88),
            _FULL,
        ],
    ),
    "6": (
        "Table 6, query generation",
        [
            _ablation("baseline", "query_generator/baseline", 69.20, 69.95, 70.43, 66.36),
            _ablation("+ STS", "query_generator/sts", 69.09, 70.80, 70.51, 66.16),
            _ablation("+ DSPS", "query_generator/sts_dsps", 71.16, 72.87, 71.73, 67.40),
            dataclasses.replace(_FULL, name="+ ITQ (full model)"),
        ],
    ),
    "7": (
        "Table 7, decoder",
        [
            _ablation("DETR", "decoder/detr", 67.87, 71.55, 70.72, 66.70),
            _ablation("deformable", "decoder/deformable", 69.14, 72.31, 71.23, 66.87),
            _ablation("multi-scale", "decoder/ms_deformable", 70.98, 74.22, 71.49, 67.08),
            dataclasses.replace(_FULL, name="+ point prior (full model)"),
        ],
    ),
    "8": (
        "Table 8, supervision",
        [
            _ablation("global", "supervision/global", 67.77, 67.63, 67.90, 65.77),
            _ablation("instance", "supervision/instance", 69.46, 72.96, 69.19, 65.15),
            _ablation("both", "supervision/global_instance", 71.71, 74.45, 72.15, 66.91),
            dataclasses.replace(_FULL, name="+ negatives (full model)"),
        ],
    ),
    "fig4": (
        "Fig. 4, selection of points",
        [
            _ablation("without minimap", "query_selection/no_minimap"),
            _ablation("top-k selector", "query_selection/topk"),
            dataclasses.replace(_FULL, paper=()),
        ],
    ),
    "findings": (
        "Findings: one choice changed",
        [
            Row("full model", FULL),
            *(
                Row(path.stem.replace("_", " "), f"findings/{path.stem}")
                for path in sorted((CONFIGS / "findings").glob("*.yaml"))
            ),
        ],
    ),
}
PAPER_TABLES = tuple(name for name in TABLES if name != "findings")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all rows on a data set have in common.

    Attributes:
        model: config of the full model.
        test: data set that is evaluated.
        schedule: of every run, in words.
        options: KEY VALUE pairs of every run.
        curve_options: those of runs of the first seed, which evaluate on the way.
        tables: keys of TABLES that its page has.
        needs_gpu: training it on CPUs would take months.
    """

    model: str
    test: str
    schedule: str
    options: Tuple[str, ...]
    curve_options: Tuple[str, ...] = ()
    tables: Tuple[str, ...] = tuple(TABLES)
    needs_gpu: bool = False


def _shapes(iterations: int, curve_period: int, tables: Sequence[str]) -> Setting:
    """Rows of one length on Shapes; 200 iterations take about 5 minutes of one core."""
    options = ("SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", "50")
    return Setting(
        model="configs/Shapes/igvg_tiny.yaml",
        test="shapes_val",
        schedule=f"{32 * iterations:,} samples (the config alone: 23,680) in batches of 32, "
        "starting from demo/beit3_tiny_shapes.safetensors",
        options=(*options, "SOLVER.CHECKPOINT_KEEP", "1", "TEST.VIS_SAMPLES", "0"),
        curve_options=("TEST.EVAL_PERIOD", str(curve_period)),
        tables=tuple(tables),
    )


SETTINGS = {
    "shapes": _shapes(200, 67, tuple(TABLES)),
    # The paper's central claim at twice the length.
    "shapes_twice": _shapes(400, 100, ("5",)),
    "grefcoco": Setting(
        model="configs/gRefCOCO/igvg_beit3_base_320_10ep.yaml",
        test="grefcoco_unc_val",
        schedule="10 epochs in batches of 128, starting from beit3-base-indomain",
        options=("SOLVER.CHECKPOINT_KEEP", "1"),
        needs_gpu=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        configs: names of the configs that it stands for; they resolve to the same options.
        seed: SEED.
        folder: OUTPUT_DIR.
        command: arguments of train_net.py, without --resume.
        config_hash: see :func:`config_hash`.
    """

    configs: Tuple[str, ...]
    seed: int
    folder: Path
    command: Tuple[str, ...]
    config_hash: str

    def __str__(self) -> str:
        return f"{self.configs[0]} seed {self.seed}"

    def shell(self) -> str:
        """The command for a terminal."""
        return shlex.join(["python", *self.command])


def overrides(config: str) -> List[str]:
    """KEY VALUE pairs by which a row of the ablations or findings differs from its model."""
    return [text for key, value in _options(CONFIGS / f"{config}.yaml") for text in (key, value)]


def _options(path: Path) -> Iterator[Tuple[str, str]]:
    """Options of a file, after those of a base that is a row itself; later ones win."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = (path.parent / content.pop("_BASE_")).resolve()
    content.pop("OUTPUT_DIR")
    if CONFIGS in base.parents:
        yield from _options(base)
    yield from _leaves(content)


def _leaves(node: Dict[str, Any], prefix: str = "") -> Iterator[Tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def make_plan(
    tables: Sequence[str], dataset: str, seeds: Sequence[int], output: Path, num_gpus: int = 0
) -> List[Run]:
    """Runs in the order in which they are started; rows with the same resolved config share one.

    The full model comes first, then the other rows of the paper's tables, first those of the first
    seed; findings come after all tables.

    Args:
        tables: keys of TABLES.
        dataset: key of SETTINGS.
        seeds: of each row; the runs of the first one evaluate on the way, for the curves.
        output: folder that gets a folder per run.
        num_gpus: of each run; 0 for one process with one thread on the CPU.

    Raises:
        ValueError: a row's config does not fit.
    """
    runs: Dict[Tuple[str, int], Run] = {}
    for chosen in ([t for t in tables if t != "findings"], [t for t in tables if t == "findings"]):
        names = [name for t in chosen for row in TABLES[t][1] for name in row.configs]
        names = list(dict.fromkeys([FULL] * bool(names) + names))
        for seed in seeds:
            for name in names:
                run = _make_run(name, dataset, seed, seed == seeds[0], output, num_gpus)
                key = run.config_hash, seed
                same: Optional[Run] = runs.get(key)
                if same is None:
                    runs[key] = run
                elif name not in same.configs:
                    runs[key] = dataclasses.replace(same, configs=(*same.configs, name))
    return list(runs.values())


def _make_run(
    name: str, dataset: str, seed: int, with_curve: bool, output: Path, num_gpus: int
) -> Run:
    setting = SETTINGS[dataset]
    options = [*setting.options, *(setting.curve_options if with_curve else ())]
    config_file = setting.model
    if name != FULL and dataset.startswith("shapes"):
        # The files of the rows are differences to the tiny model.
        config_file = os.path.relpath(CONFIGS / f"{name}.yaml", ROOT)
    elif name != FULL:
        options += overrides(name)
    options += ["DATASETS.TEST", f"('{setting.test}',)", "SEED", str(seed)]
    if not num_gpus:
        options += ["SOLVER.NUM_THREADS", "1"]
    cfg = setup_config(str(ROOT / config_file), options, num_processes=max(num_gpus, 1))
    check_config(cfg)
    folder = output / name / f"seed{seed}"
    gpus = ("--num-gpus", str(num_gpus)) if num_gpus else ()
    command = ("train_net.py", "--config-file", config_file, *gpus, *options)
    return Run((name,), seed, folder, (*command, "OUTPUT_DIR", str(folder)), config_hash(cfg))


def config_hash(cfg: CfgNode) -> str:
    """SHA-256 over a resolved config, but for what decides where it is trained."""
    content = {key: str(value) for key, value in flatten(cfg) if key not in _UNRELATED}
    # Found in the checkout by absolute path.
    content["MODEL.WEIGHTS"] = content["MODEL.WEIGHTS"].replace(f"{ROOT}{os.sep}", "")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def max_iter(run: Run) -> int:
    """Iterations of a run that has begun, also where its config states epochs; else 0."""
    path = run.folder / "config.yaml"
    # Its tuples are tags of Python, which a safe reader refuses; the number has its own line.
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((int(line.split(":")[1]) for line in lines if "MAX_ITER:" in line), 0)


@functools.lru_cache()
def code_hash() -> str:
    """SHA-256 over what computes the numbers: the library and train_net.py."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "igvg_d2").rglob("*.py"), ROOT / "train_net.py"]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
