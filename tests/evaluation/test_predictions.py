"""Prediction files: written, read back, scored, refused."""

import json
import os
import random
import signal

import numpy as np
import pycocotools.mask as mask_util
import pytest

from igvg_d2.data.datasets import load_referring
from igvg_d2.evaluation import GRefCOCOEvaluator, GroundTruth, scoring
from igvg_d2.evaluation.predictions import (
    PredictionError,
    output_to_prediction,
    prediction_to_output,
    read_predictions,
)
from tests.scripts import load_script

scorer = load_script("tools/score_predictions.py")


def encode(mask):
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.fixture
def two_samples(make_sample, box_mask, register):
    """Name of a data set of one target and no target, and its samples."""
    samples = [
        make_sample("1_0", [box_mask((2, 3, 12, 13))], [[2, 3, 10, 10]]),
        make_sample("2_0", [], []),
    ]
    return register(samples), samples


@pytest.fixture
def outputs(make_output, box_mask):
    mask = box_mask((2, 3, 12, 11))
    masks = [mask, box_mask((0, 0, 3, 3))]
    boxes, points = [[2.1, 3, 12, 11], [0, 0, 3, 3]], [[5, 6.5], [1, 1]]
    return [
        make_output(mask, False, boxes, [0.91, 0.2], masks, points),
        make_output(box_mask(None), True, boxes, [0.1, 0.72], masks, points),
    ]


def write(path, predictions, lines=False):
    text = "\n".join(map(json.dumps, predictions)) if lines else json.dumps(predictions)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("kind", ["grefcoco", "refcoco", "ref_l4", "openref"])
def test_data_without_masks_need_boxes(make_sample, register, tmp_path, kind):
    name = register([make_sample("1_0", [None], [[2, 3, 10, 10]])], kind)
    path = write(tmp_path / "p.json", [{"sample_id": "1_0", "pred_bbox": [2, 3, 12, 13]}])
    with pytest.raises(PredictionError, match="data without masks .*; no prediction has 'boxes'"):
        scorer.score(name, path)
    path = write(tmp_path / "p.json", [{"sample_id": "1_0", "boxes": [], "scores": []}])
    assert scorer.score(name, path)["results"]


def test_masks_are_decoded_as_pycocotools_does(make_sample):
    generator = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.97, 1.0):
        mask = generator.random((37, 53)) < density
        mask[5:20, 7:31] = density > 0.3
        sample = make_sample("1_0", [], [], size=(37, 53))
        rle = encode(mask)
        assert (mask_util.decode(rle) == mask).all()
        output = prediction_to_output({"sample_id": "1_0", "mask": rle}, sample)
        assert (mask_util.decode(output["mask"]) == mask).all()
        assert output["no_target"] is not bool(mask.any())


def test_scoring_what_a_run_wrote_gives_its_numbers(two_samples, outputs, tmp_path):
    name, samples = two_samples
    folder = str(tmp_path)
    evaluator = GRefCOCOEvaluator(dataset_name=name, output_folder=folder, save_predictions=True)
    evaluator.reset()
    inputs = [{"sample_id": sample["sample_id"]} for sample in samples]
    evaluator.process(inputs, outputs)
    evaluator.process(inputs[:1], outputs[:1])  # a padded sampler's repetition
    results = evaluator.evaluate()
    path = tmp_path / f"{name}_predictions.jsonl"
    assert [p.name for p in tmp_path.glob("*predictions*")] == [path.name]
    report = scorer.score(name, str(path))
    np.testing.assert_equal(report["results"], results)
    assert report["num_samples"] == 2 and report["results"]["instance"]["CoverAcc"] == 100.0


def test_list_and_lines_are_the_same_and_ids_may_be_split(two_samples, outputs, tmp_path):
    name, samples = two_samples
    predictions = [output_to_prediction(o, s) for o, s in zip(outputs, samples)]
    split = [{**p, "ref_id": i, "sent_id": 0} for i, p in enumerate(predictions, 1)]
    for p in split:
        del p["sample_id"]
    first = scorer.score(name, write(tmp_path / "a.json", predictions))
    second = scorer.score(name, write(tmp_path / "b.jsonl", split, lines=True))
    np.testing.assert_equal(first["results"], second["results"])


def test_without_boxes_only_masks_are_scored(two_samples, outputs, tmp_path):
    name, samples = two_samples
    predictions = [
        {key: output_to_prediction(o, s)[key] for key in ("sample_id", "mask")}
        for o, s in zip(outputs, samples)
    ]
    path = write(tmp_path / "p.json", predictions)
    report = scorer.score(name, path)
    assert report["results"].keys() == {"gres"} and report["results"]["gres"]["N_acc"] == 100.0
    intervals = report["breakdown"]["95% interval"]
    assert "gIoU" in intervals and "F1score" not in intervals
    with pytest.raises(
        PredictionError, match="rules .* are about boxes; no prediction has 'boxes'"
    ):
        scorer.score(name, path, protocols=("released",))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p[0].update(sample_id="9_9"), "1 unknown samples: 9_9; 1 missing samples: 1_0"),
        (lambda p: p.append(p[0]), "1 repeated samples: 1_0"),
        (lambda p: p.pop(), "1 missing samples: 2_0.*--allow-missing"),
        (lambda p: p[0].pop("mask"), "'1_0': no 'mask'"),
        (lambda p: p[0]["mask"].update(size=[30, 20]), r"RLE of size \[20, 30\].*\[30, 20\]"),
        (lambda p: p[0]["mask"].update(counts="5"), "no valid RLE"),
        (lambda p: p[0].update(boxes=[[0, 0, float("nan"), 1]] * 2), "'boxes' must be finite"),
        (lambda p: p[0].update(boxes=[[-1e20, -1e20, 1e20, 1e20]] * 2), "'boxes' must be finite"),
        (lambda p: p[0].update(points=[[1, 1], [1e19, 1]]), "'points' must be finite"),
        (lambda p: p[0].update(scores=[0.5]), "2 boxes but 1 scores"),
        (lambda p: p[0].update(scores=0.5), "'scores' must be numbers: found 0.5"),
        (lambda p: p[0].update(scores=[0.5, 1.5]), r"probabilities in \[0, 1\]"),
        (lambda p: p[0].update(no_targt=p[0].pop("no_target")), "is 'no_target' meant"),
        (lambda p: p[0].update(no_target="no"), "'no_target' must be a bool"),
        (lambda p: p[0].update(no_target_score=3), "not in"),
        (lambda p: p[0].update(masks=[]), "one for each box"),
        (lambda p: p[0].pop("sample_id"), "record 1: expected 'sample_id'"),
        (lambda p: p[0].update(sample_id="\x1b[2J\nx"), r"without control codes: '\\x1b\[2J\\nx'"),
        (lambda p: p[0].update(sample_id="1_0\ud800"), r"without control codes: '1_0\\ud800'"),
    ],
)
def test_what_cannot_be_scored_is_named(two_samples, outputs, tmp_path, change, message):
    name, samples = two_samples
    predictions = [output_to_prediction(o, s) for o, s in zip(outputs, samples)]
    change(predictions)
    with pytest.raises(PredictionError, match=message):
        scorer.score(name, write(tmp_path / "p.json", predictions))


def test_missing_samples_can_be_allowed(two_samples, outputs, tmp_path):
    name, samples = two_samples
    path = write(tmp_path / "p.json", [output_to_prediction(outputs[0], samples[0])])
    report = scorer.score(name, path, allow_missing=True)
    assert (report["num_samples"], report["num_missing"]) == (1, 1)
    with pytest.raises(PredictionError, match="no prediction at all"):
        scorer.score(name, write(tmp_path / "e.json", []), allow_missing=True)


def test_command_line(two_samples, outputs, tmp_path, capsys):
    name, samples = two_samples
    predictions = [output_to_prediction(o, s) for o, s in zip(outputs, samples)]
    path, output = write(tmp_path / "p.json", predictions), tmp_path / "r.json"
    scorer.main(["--dataset", name, "--predictions", path, "--output", str(output)])
    assert "native: original resolution" in capsys.readouterr().out
    assert json.loads(output.read_text())["results"]["gres"]["N_acc"] == 100.0
    with pytest.raises(SystemExit, match="no data set 'nope'"):
        scorer.main(["--dataset", "nope", "--predictions", path])
    with pytest.raises(SystemExit, match="cannot score.*absent.json"):
        scorer.main(["--dataset", name, "--predictions", str(tmp_path / "absent.json")])


def test_command_line_hands_the_number_of_processes_on(
    two_samples, outputs, tmp_path, monkeypatch, capsys
):
    name, samples = two_samples
    predictions = [output_to_prediction(o, s) for o, s in zip(outputs, samples)]
    path, score_file, used = write(tmp_path / "p.json", predictions), scorer.score_file, []

    def watch(evaluator, file, num_workers, progress):
        used.append(num_workers)
        return score_file(evaluator, file, num_workers, progress)

    monkeypatch.setattr(scorer, "score_file", watch)
    scorer.main(["--dataset", name, "--predictions", path, "--num-workers", "2"])
    assert used == [2]
    assert "native: original resolution" in capsys.readouterr().out


def test_a_killed_worker_ends_the_scorer(two_samples, outputs, tmp_path, monkeypatch):
    name, samples = two_samples
    path = write(
        tmp_path / "p.json", [output_to_prediction(o, s) for o, s in zip(outputs, samples)]
    )
    monkeypatch.setattr(scoring, "_judge", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    arguments = ["--dataset", name, "--predictions", path, "--num-workers", "2"]
    with pytest.raises(SystemExit, match="cannot score: a worker process was killed"):
        scorer.main(arguments)


@pytest.mark.parametrize("escape", ["\x1b[2J", "\x1b]0;title\x07", "\r", "\x9b2J", "\u202e"])
def test_nothing_in_a_file_acts_on_the_terminal(two_samples, outputs, tmp_path, capsys, escape):
    name, samples = two_samples
    predictions = [output_to_prediction(o, s) for o, s in zip(outputs, samples)]
    hostile = [
        {**predictions[0], "sample_id": f"9_9{escape}gIoU 99.9"},
        {**predictions[0], "ref_id": f"9{escape}", "sent_id": 1},
        {**predictions[0], "no_target": f"{escape}"},
        {**predictions[0], "mask": {"size": [20, 30], "counts": escape}},
        {**predictions[0], "mask": {"size": [20, escape], f"{escape}": escape}},
        {**predictions[0], "boxes": escape},
    ]
    for item in hostile:
        path = write(tmp_path / "p.json", [item, *predictions[1:]])
        with pytest.raises(SystemExit) as caught:
            scorer.main(["--dataset", name, "--predictions", path])
        # The progress bar itself returns to the start of its line.
        assert escape not in f"{caught.value}{capsys.readouterr().out}"


def corrupt(text, generator):
    """The text with a character replaced, a piece cut out, repeated or truncated."""
    start = generator.randrange(len(text))
    end = min(len(text), start + generator.choice([1, 1, 2, 30]))
    kind = generator.randrange(4)
    if kind == 0:
        return text[:start] + chr(generator.randrange(32, 127)) + text[start + 1 :]
    if kind == 1:
        return text[:start] + text[end:]
    return text[:end] + text[start:] if kind == 2 else text[:start]


def test_damaged_files_end_in_our_error_or_a_number(two_samples, outputs, tmp_path):
    name, samples = two_samples
    predictions = [output_to_prediction(o, s) for o, s in zip(outputs, samples)]
    generator, refused = random.Random(0), 0
    for i in range(400):
        lines = i % 2
        text = ("\n" if lines else ", ").join(map(json.dumps, predictions))
        text = corrupt(text if lines else f"[{text}]", generator)
        (tmp_path / "p.json").write_text(text)
        try:
            report = scorer.score(name, str(tmp_path / "p.json"))
        except ValueError as error:
            assert "sample" in str(error) or "p.json" in str(error), error
            refused += 1
        else:
            assert 0 <= report["results"]["gres"]["gIoU"] <= 100
    assert 200 < refused < 400


def test_official_fixture_through_the_scorer(fixtures_dir, register):
    folder = fixtures_dir / "grefcoco"
    data = folder / "data" / "grefcoco"
    samples = load_referring(
        str(data / "grefs(unc).json"), str(data / "instances.json"), "none", "val"
    )
    results = scorer.score(register(samples), str(folder / "predictions_val.json"))["results"]
    expected = json.loads((folder / "expected.json").read_text())["val"]
    official = expected["gres"]["rela_native"]["results"]["grefcoco"]
    for key in ("gIoU", "cIoU", "Pr@0.7", "Pr@0.8", "Pr@0.9"):
        assert results["gres"][key] == pytest.approx(official[key], rel=1e-9)
    official = expected["grec"]["mdetr_official"]["results"]
    assert results["grec"]["F1score"] == pytest.approx(100 * official["F1_score"], rel=1e-9)


def test_lines_are_read_one_by_one(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"sample_id": "1_0"}\n\n{"sample_id": 3}\n')
    reader = read_predictions(str(path))
    assert next(reader) == {"sample_id": "1_0"}
    with pytest.raises(PredictionError, match="p.jsonl, line 3: 'sample_id' must be text"):
        next(reader)


def test_native_scores_need_no_pixels(two_samples, outputs, monkeypatch):
    name, samples = two_samples
    evaluator = GRefCOCOEvaluator(dataset_name=name)
    expected, found = [], []
    for sample, output in zip(samples, outputs):
        target = GroundTruth.from_sample(sample)
        expected.append(evaluator.make_record(target, output))
        prediction = json.loads(json.dumps(output_to_prediction(output, sample)))
        with monkeypatch.context() as patch:
            patch.setattr(mask_util, "decode", None)
            found.append(evaluator.make_record(target, prediction_to_output(prediction, sample)))
    assert found == expected
