"""The plan of the paper's rows, the queue that trains them, and the verdicts on the page."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from igvg_d2.engine import setup_config
from igvg_d2.engine.config_checks import flatten
from igvg_d2.evaluation.instance_evaluation import summarize_instances

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "projects" / "IGVG"
MODULES = ("reproduce", "ablation_plan", "ablation_page", "ablation_differences")
# Ends with 75 on SIGTERM and goes on with --resume, as train_net.py does.
TRAIN_NET = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[-1])
if "--resume" in sys.argv:
    sys.exit((folder / "resumed").touch())
(folder / "last_checkpoint").touch()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
(folder / "started").touch()
time.sleep(60)
"""


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The modules of the project by name, imported as its script does; forgotten afterwards."""
    sys.path.insert(0, str(PROJECT))
    yield {name: __import__(name) for name in MODULES}
    sys.path.remove(str(PROJECT))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def plan(modules, tmp_path_factory):
    """All runs on Shapes with three seeds."""
    tables = list(modules["ablation_plan"].TABLES)
    return modules["ablation_plan"].make_plan(
        tables, "shapes", range(3), tmp_path_factory.mktemp("runs")
    )


def test_plan_trains_each_row_once_and_the_first_seed_first(modules, plan):
    names = modules["ablation_plan"]
    rows = {row.name: row for _, rows in names.TABLES.values() for row in rows}
    assert {n for row in rows.values() for n in row.configs} == {n for r in plan for n in r.configs}
    in_tables = [run for run in plan if not run.configs[0].startswith("findings/")]
    # 13 ablations, two bars of Fig. 4 and the full model, which is a row of every table.
    assert len(in_tables) == 3 * 16 and plan[:48] == in_tables
    assert [run.seed for run in in_tables] == [0] * 16 + [1] * 16 + [2] * 16
    assert [run.configs for run in in_tables[::16]] == [("full",)] * 3
    assert len({run.folder for run in plan}) == len(plan) == 3 * 27


def test_commands_state_the_common_schedule(modules, plan):
    row = next(r for r in plan if r.configs == ("ablations/decoder/detr",) and r.seed == 1)
    assert row.shell() == (
        "python train_net.py --config-file projects/IGVG/configs/ablations/decoder/detr.yaml "
        "SOLVER.MAX_ITER 200 SOLVER.CHECKPOINT_PERIOD 50 SOLVER.CHECKPOINT_KEEP 1 TEST.VIS_SAMPLES "
        "0 DATASETS.TEST '('\"'\"'shapes_val'\"'\"',)' SEED 1 SOLVER.NUM_THREADS 1 OUTPUT_DIR "
        f"{row.folder}"
    )
    assert [("TEST.EVAL_PERIOD" in run.command) for run in plan[:48]] == [True] * 16 + [False] * 32


def test_rows_on_grefcoco_change_the_large_model_as_on_shapes(modules, tmp_path):
    plan = modules["ablation_plan"]
    runs = plan.make_plan(["5", "findings"], "grefcoco", [0], tmp_path, num_gpus=8)
    options = {}
    for run in runs:
        assert run.command[:4] == (
            "train_net.py",
            "--config-file",
            "configs/gRefCOCO/igvg_beit3_base_320_10ep.yaml",
            "--num-gpus",
        )
        cfg = dict(flatten(setup_config(str(ROOT / run.command[2]), run.command[5:])))
        options[run.configs] = {k: v for k, v in cfg.items() if k != "OUTPUT_DIR"}
    # Equal class weights and softmax weights are what the paper has: no run of their own.
    shared = ("full", "findings/map_weights", "findings/no_target_equal")
    full = options[next(names for names in options if names[0] == "full")]
    assert set(shared) <= set(next(names for names in options if names[0] == "full"))
    found = options["ablations/modules/detection_only",]
    assert {key: value for key, value in found.items() if value != full[key]} == {
        "MODEL.QUERY_GENERATOR.NAME": "LearnedQueryGenerator",
        "MODEL.GROUNDING_HEAD.DECODER": "DETRDecoder",
        "MODEL.GROUNDING_HEAD.IN_FEATURES": ["p4"],
        "MODEL.GROUNDING_HEAD.REFERENCE": "learned",
        "MODEL.GROUNDING_HEAD.MASK_ON": False,
        "MODEL.GROUNDING_HEAD.MATCHER.POINT_WEIGHT": 0.0,
        "MODEL.IGVG.TEST.OUTPUT_MASK": "global",
        "MODEL.GLOBAL_HEAD.MASK_ON": False,
    }


def test_dry_run_on_grefcoco_prints_commands_and_trains_nothing(modules, tmp_path, capsys):
    main = modules["reproduce"].main
    arguments = ["--dataset", "grefcoco", "--num-gpus", "8", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--table", "fig4", "--seeds", "2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# full; seed 0" and lines[-1] == "# 6 runs, 1 at a time; their configs fit"
    assert "--num-gpus 8" in lines[3] and "MODEL.QUERY_GENERATOR.MINIMAP_WEIGHT 0.0" in lines[3]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def queue_of(modules, tmp_path):
    """Two runs of the stand-in for train_net.py, and a function that makes their queue."""
    script = tmp_path / "train_net.py"
    script.write_text(TRAIN_NET)
    run = modules["ablation_plan"].Run
    runs = [
        run((name,), 0, tmp_path / name, (str(script), str(tmp_path / name)), "hash")
        for name in ("a", "b")
    ]
    facts = {"commit": "c", "code": modules["ablation_plan"].code_hash()}
    return runs, lambda: modules["reproduce"].Queue(runs, 2, facts)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_interrupted_set_is_resumed(modules, queue_of, capfd, number, request):
    runs, make_queue = queue_of
    before = signal.signal(number, signal.SIG_DFL)  # ignored, if a shell's background is tested
    request.addfinalizer(lambda: signal.signal(number, before))

    def interrupt():
        while not all((run.folder / "started").exists() for run in runs):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    queue = make_queue()
    queue.work()
    thread.join()
    assert queue.stopped and not queue.failed and queue.num_done == 0
    assert signal.getsignal(number) == signal.SIG_DFL
    again = make_queue()
    assert again.waiting == runs
    again.work()
    assert again.num_done == 2 and make_queue().waiting == []
    assert "interrupted after" in capfd.readouterr().out
    for run in runs:
        first, second = modules["reproduce"].read_attempts(run)
        assert (first["returncode"], second["returncode"]) == (75, 0)
        assert "--resume" not in first["command"] and " --resume " in second["command"]
        assert second["cpu_seconds"] > 0 and second["commit"] == "c"
        assert (run.folder / "resumed").exists()


def test_other_configs_and_other_code_are_refused(modules, queue_of):
    runs, make_queue = queue_of
    for run in runs:
        run.folder.mkdir()
        (run.folder / "last_checkpoint").touch()
    make_queue().work()
    with pytest.raises(ValueError, match="another state of igvg_d2.*commit c,"):
        modules["reproduce"].check_code(runs, "other")
    with pytest.raises(ValueError, match="another config than a has now"):
        modules["reproduce"].is_complete(dataclasses.replace(runs[0], config_hash="other"))


def test_failed_run_is_reported_and_tried_again(queue_of, tmp_path):
    (tmp_path / "train_net.py").write_text("raise SystemExit('no data')")
    runs, make_queue = queue_of
    queue = make_queue()
    queue.work()
    assert set(queue.failed) == set(runs) and not queue.stopped
    assert "no data" in (runs[0].folder / "console.txt").read_text()
    assert make_queue().waiting == runs


def make_record(i, num_targets, iou, num_matched):
    """A record as GRefCOCOEvaluator keeps it, one image each."""
    return {
        "sample_id": f"{i:04d}",
        "image_id": i,
        "num_targets": num_targets,
        "pixels": {"native": [int(100 * iou), 100, 100, 100]},
        "pred_no_target": num_targets == 0 and iou == 1.0,
        "iou": iou,
        "grec": {"native": [float(num_matched == num_targets), num_targets, num_matched]},
        "num_matched": num_matched,
        "scores": [],
        "mask_ious": [],
        "box_ious": [],
        "num_covered": num_matched,
        "num_covered_all": num_matched,
        "box_mask_ious": [],
    }


def evaluated(modules, iou, num_matched, cases=40):
    """A run: 3 targets per sample, one in four samples without any, all alike."""
    records = [
        make_record(i, 3 * bool(i % 4), iou if i % 4 else 1.0, num_matched * bool(i % 4))
        for i in range(cases)
    ]
    results = {
        "gres": {"gIoU": 100 * (0.25 + 0.75 * iou), "cIoU": 100 * iou, "N_acc": 100.0},
        "grec": {"F1score": 25.0 + 75.0 * (num_matched == 3)},
        "instance": {
            "mask_AP50": None,
            "CoverAcc_all": 100 * num_matched / 3,
            "CoverAcc": 100 * num_matched / 3,
            "recall_3plus": 100 * num_matched / 3,
        },
        "data": {"hash": "x"},
    }
    return modules["ablation_differences"].Evaluated(results, records)


def test_difference_is_paired_over_seeds_and_samples(modules):
    compare = modules["ablation_differences"].difference
    before = [evaluated(modules, 0.5, 1), evaluated(modules, 0.5, 1)]
    after = [evaluated(modules, 0.6, 2), evaluated(modules, 0.7, 2)]
    found = compare("gIoU", before, after, paper=1.0)
    assert found.per_seed == pytest.approx((7.5, 15.0)) and found.mean == pytest.approx(11.25)
    assert 0 < found.low < 11.25 < found.high < 15.0
    assert found.verdict == "holds" and found.num_agreeing == 2
    # All of the samples that count gain one target of three: no resample differs.
    found = compare("recall 3+", before, after)
    assert (found.low, found.high) == pytest.approx((100 / 3, 100 / 3))
    assert found.verdict == "higher"
    assert compare("mask AP50", before, after) is None
    assert compare("gIoU", [], []) is None


@pytest.mark.parametrize(
    "per_seed, low, high, paper, verdict",
    [
        ((1.0, 2.0), 0.5, 2.5, 1.0, "holds"),
        ((1.0, 2.0), 0.5, 2.5, -1.0, "reversed"),
        ((1.0, 2.0), -0.1, 2.5, 1.0, "noise"),
        ((3.0, -0.5), 0.5, 2.5, 1.0, "noise"),
        ((1.0, 2.0), 0.5, 2.5, 0.1, "tie"),
        ((-1.0, -2.0), -2.5, -0.5, None, "lower"),
        ((0.0, 0.0), 0.0, 0.0, 1.0, "noise"),
    ],
)
def test_verdict(modules, per_seed, low, high, paper, verdict):
    found = modules["ablation_differences"].Difference(per_seed, low, high, paper)
    assert found.verdict == verdict


def test_other_samples_are_not_compared(modules):
    runs = [[evaluated(modules, 0.5, 1, cases)] for cases in (40, 36)]
    with pytest.raises(ValueError, match="different samples"):
        modules["ablation_differences"].difference("gIoU", *runs)


def test_linear_form_of_ciou_has_the_interval_of_the_ratio(modules):
    module, generator = modules["ablation_differences"], np.random.default_rng(0)
    unions = generator.integers(50, 150, (2, 400)).astype(float)
    shares = [generator.uniform(low, 1.0, 400) for low in (0.3, 0.4)]
    ratios = [(share * union, union) for share, union in zip(shares, unions)]
    numerators, denominators = module._difference_ratio([tuple(ratios)])
    values = [n.sum() / d.sum() for n, d in ratios]
    assert numerators.mean() == pytest.approx(values[1] - values[0])
    weights = generator.multinomial(400, [1 / 400] * 400, 2000)
    exact = (weights @ ratios[1][0]) / (weights @ unions[1])
    exact = exact - (weights @ ratios[0][0]) / (weights @ unions[0])
    linear = (weights @ numerators) / (weights @ denominators)
    limits = [np.quantile(values, [0.025, 0.975]) for values in (exact, linear)]
    assert np.abs(limits[0] - limits[1]).max() < 0.05 * exact.std()


@pytest.mark.parametrize("kind", ["mask", "box"])
def test_weighted_ap_is_that_of_coco_and_of_repeated_images(modules, kind):
    generator = np.random.default_rng(3)
    records = []
    for i in range(60):
        targets, candidates = int(generator.integers(0, 4)), int(generator.integers(0, 6))
        # Equal scores and equal overlaps occur.
        ious = generator.choice([0.3, 0.5, 0.6, 0.8], (candidates, targets)).tolist()
        scores = -np.sort(-generator.choice([0.2, 0.5, 0.7, 0.9], candidates))
        others = {f"{other}_ious": [[0.0] * targets] * candidates for other in ("mask", "box")}
        others.update({"scores": scores.tolist(), f"{kind}_ious": ious})
        records.append({**make_record(i, targets, 0.5, 0), **others})
    table = modules["ablation_differences"].PrecisionTable(records, f"{kind}_ious")
    expected = summarize_instances(records)[f"{kind}_AP50"] / 100
    assert table.average_precision(np.ones((1, 60)))[0] == pytest.approx(expected, abs=1e-12)
    chosen = summarize_instances(records[:30])[f"{kind}_AP50"] / 100
    weights = np.concatenate([np.ones(30), np.zeros(30)])[None]
    assert table.average_precision(weights)[0] == pytest.approx(chosen, abs=1e-12)


def write_run(run, found):
    """What a complete run leaves."""
    folder = run.folder / "inference" / "shapes_val"
    folder.mkdir(parents=True)
    report = {"results": {**found.results, "data": {}}, "dataset_hash": "x"}
    (folder / "shapes_val_metrics.json").write_text(json.dumps(report))
    (folder / "shapes_val_records.json").write_text(json.dumps(found.records))
    names = ("iteration", "gres/gIoU", "grec/F1score")
    lines = [dict(zip(names, (i, 50.0 + i, 40.0 + i))) for i in (83, 167, 250)]
    (run.folder / "config.yaml").write_text("SOLVER:\n  MAX_ITER: 250\n")
    (run.folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    attempt = {"commit": "abc", "code": "d", "config_hash": run.config_hash, "returncode": 0}
    attempt.update(command="train_net.py", wall_seconds=240.0, cpu_seconds=1800.0)
    (run.folder / "attempts.jsonl").write_text(json.dumps(attempt) + "\n")


def test_page_from_complete_runs_names_the_missing(modules, plan, tmp_path):
    done = {}
    for run in plan:
        name = run.configs[0]
        if run.seed < 2 and (name == "full" or "query_selection" in name or "supervision" in name):
            quality = (0.8, 3) if name == "full" else (0.5, 1)
            write_run(run, evaluated(modules, quality[0] + 0.01 * run.seed, quality[1]))
            done[run] = modules["reproduce"].read_attempts(run)
    assert len(done) == 12 and all(map(modules["reproduce"].is_complete, done))
    page, write_page = tmp_path / "RESULTS.md", modules["ablation_page"].write_page
    write_page(page, "shapes", plan, done)
    text = page.read_text()
    for expected in (
        "runs complete: 12 of 81",
        "CPU time of these runs: 6.00 h; longest run 4.0 minutes",
        "(full model) | full | 100.0 ± 0.0 (71.43) | 100.0 ± 0.0 (75.87) | 85.4 ± 0.5 (72.41) |",
        "| 8 | 12 | 2 | 1 | 9 | 0 | 0 |",
        "Reversed: 8: both to + negatives (full model), F1score +75.0.",
        "- Fig. 4, selection of points, CoverAcc: above without minimap, top-k selector",
        "- Table 8, supervision, gIoU: above global, instance, both",
        "- Table 5, core modules, gIoU: not run yet",
        "| DETR | ablations/decoder/detr | - (67.87) | - (71.55) | - (70.72) | - (66.70) | - |",
        "| pool max | findings/pool_max | - | - | - | - | - | - | - | - | 0 |",
        "ablations/decoder/detr seed 0",
        "full seed 2",
    ):
        assert expected in text, expected
    assert "full seed 1" not in text
    results = modules["ablation_page"].Results(plan, done, "shapes")
    curves = modules["ablation_page"]._curves(results, "8", 0, "gIoU")
    assert curves["global"] == [(84, 133.0), (168, 217.0), (250, 300.0)]
    for name in ("cover_accuracy", "learning_curves"):
        assert (tmp_path / "images" / f"{name}.png").stat().st_size > 10_000
    write_page(page, "shapes_twice", plan, done)
    text = page.read_text()
    assert "# Table 5" in text and "Table 8" not in text and "One choice" not in text
