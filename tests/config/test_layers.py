"""What configs add to the one they start from, and nothing else."""

from pathlib import Path

import pytest

from igvg_d2.engine import setup_config
from igvg_d2.engine.config_checks import flatten

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
ABLATIONS = ROOT / "projects/IGVG/configs/ablations"
FINDINGS = ABLATIONS.with_name("findings")
FULL = CONFIGS / "Shapes/igvg_tiny.yaml"

QUERIES, HEAD = "MODEL.QUERY_GENERATOR.", "MODEL.GROUNDING_HEAD."
GLOBAL_MASK = {"MODEL.GLOBAL_HEAD.MASK_ON": False}
INSTANCE_MASKS = {HEAD + "MASK_ON": False}
GLOBAL_OUTPUT = {"MODEL.IGVG.TEST.OUTPUT_MASK": "global"}
NO_NEGATIVES = {HEAD + "NEGATIVE_WEIGHT": 0.0}
LEARNED_REFERENCE = {HEAD + "REFERENCE": "learned"}
SINGLE_SCALE = {HEAD + "IN_FEATURES": ["p4"], **LEARNED_REFERENCE}
DETR = {HEAD + "DECODER": "DETRDecoder", **SINGLE_SCALE}
# Without PIPH: DETR's decoder, and no point in queries, references and matcher.
NO_POINTS = {**DETR, HEAD + "MATCHER.POINT_WEIGHT": 0.0}
LEARNED_QUERIES = {QUERIES + "NAME": "LearnedQueryGenerator", **NO_POINTS}
MULTI_TASK = {**LEARNED_QUERIES, **INSTANCE_MASKS, **GLOBAL_OUTPUT}
NO_ITQ = {QUERIES + "INJECT_TEXT": False}
NO_DSPS = {QUERIES + "SELECTOR": "topk", **NO_ITQ}
# Row of the paper's Tables 5 to 8: options in which it differs from the full model.
ROWS = {
    "modules/detection_only": {**MULTI_TASK, **GLOBAL_MASK},
    "modules/segmentation_only": {QUERIES + "NAME": "", HEAD + "NAME": ""},
    "modules/multi_task": MULTI_TASK,
    "modules/instance_aware": {QUERIES + "NAME": "TextGuidedQueryGenerator", **NO_POINTS},
    "query_generator/baseline": {QUERIES + "TEXT_SELECTION": "off", **NO_DSPS},
    "query_generator/sts": NO_DSPS,
    "query_generator/sts_dsps": NO_ITQ,
    "decoder/detr": DETR,
    "decoder/deformable": SINGLE_SCALE,
    "decoder/ms_deformable": LEARNED_REFERENCE,
    "supervision/global": {**INSTANCE_MASKS, **GLOBAL_OUTPUT},
    "supervision/instance": {
        **GLOBAL_MASK,
        **NO_NEGATIVES,
        "MODEL.IGVG.TEST.OUTPUT_MASK": "instance",
    },
    "supervision/global_instance": NO_NEGATIVES,
    # The bars of Fig. 4.
    "query_selection/no_minimap": {QUERIES + "MINIMAP_WEIGHT": 0.0},
    "query_selection/topk": {QUERIES + "SELECTOR": "topk"},
}


def changed(path, base):
    """Options of a config, OUTPUT_DIR aside, that differ from another config's: name -> value."""
    before = dict(flatten(setup_config(str(base))))
    after = dict(flatten(setup_config(str(path))))
    assert before.pop("OUTPUT_DIR") != after.pop("OUTPUT_DIR")
    assert after.keys() == before.keys()
    return {key: value for key, value in after.items() if value != before[key]}


def test_every_ablation_is_stated():
    found = {str(p.relative_to(ABLATIONS).with_suffix("")) for p in ABLATIONS.rglob("*.yaml")}
    assert found == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_ablation_differs_from_the_full_model_by_its_row_alone(row):
    assert changed(ABLATIONS / f"{row}.yaml", FULL) == ROWS[row]


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_finding_differs_from_the_full_model_by_one_choice(path):
    assert len(changed(path, FULL)) == 1


def test_best_is_the_full_model_with_what_the_results_say_helps():
    expected = {**changed(FINDINGS / "text_score_mean.yaml", FULL), **NO_NEGATIVES}
    assert changed(FULL.with_name("igvg_tiny_best.yaml"), FULL) == expected
    results = (ROOT / "projects/IGVG/RESULTS.md").read_text(encoding="utf-8")
    assert "lower nowhere: text score mean." in results
    # From "both" to the full model, which has the negatives: lower in some columns, higher in none.
    row = next(x for x in results.splitlines() if x.startswith("| both, + negatives"))
    assert "**lower**" in row and "higher" not in row and "holds" not in row


@pytest.mark.parametrize("large", sorted(CONFIGS.rglob("*_large_*.yaml")), ids=lambda p: p.stem)
def test_large_differs_from_base_by_encoder_and_batch_alone(large):
    """Parts of ``_BASE_`` bring Base-IGVG.yaml again; nothing of the base model may be reset."""
    expected = {"EMBED_DIM": 1024, "DEPTH": 24, "NUM_HEADS": 16, "FFN_DIM": 4096}
    if "released" in large.name:
        expected["DROP_PATH"] = 0.0
    expected = {f"MODEL.BEIT3.{key}": value for key, value in expected.items()}
    expected["SOLVER.IMS_PER_BATCH"] = 4 if "released" in large.name else 32
    expected["MODEL.WEIGHTS"] = "beit3_large_patch16_224.zip"
    base = large.with_name(large.name.replace("large", "base"))
    assert changed(large, base) == expected


@pytest.mark.parametrize(
    "name, method",
    [
        ("igvg_beit3_base_320_20ep.yaml", "Training-IGVG.yaml"),
        ("instancevg_beit3_base_320_released.yaml", "Released-IGVG.yaml"),
    ],
)
def test_refcoco_differs_from_the_method_by_its_recipe_alone(name, method):
    assert set(changed(CONFIGS / "RefCOCO" / name, CONFIGS / method)) == {
        "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES",
        "MODEL.GROUNDING_HEAD.NEGATIVE_WEIGHT",
        "INPUT.TOKENIZER.MAX_TOKENS",
        "DATASETS.TRAIN",
        "DATASETS.TEST",
        "DATALOADER.SAMPLE_UNIT",
        "SOLVER.EPOCHS",
        "SOLVER.WARMUP_EPOCHS",
        "SOLVER.STEP_EPOCHS",
    }
