"""A step equals that of the whole batch, however it is cut, and mixed precision trains."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

import igvg_d2.modeling  # noqa: F401
from igvg_d2.engine.guards import BadSampleLog, LossGuard
from igvg_d2.engine.train_step import GroundingStepTrainer, split_batch
from igvg_d2.modeling.query_generator import PointGuidedQueryGenerator
from igvg_d2.modeling.targets import BatchTotals
from igvg_d2.solver.build import clip_total_norm
from igvg_d2.testing import random_batch, tiny_cfg

# Without batch statistics and without random numbers, but with every loss there is.
EXACT = [
    "MODEL.PIXEL_DECODER.NORM", "LN",
    "MODEL.BEIT3.DROP_PATH", 0.0,
    "MODEL.QUERY_GENERATOR.DROPOUT", 0.0,
    "MODEL.GROUNDING_HEAD.DROPOUT", 0.0,
    "MODEL.GLOBAL_HEAD.NO_TARGET_CLASS_WEIGHTS", (0.9, 1.1),
]  # fmt: skip
FROZEN = ["MODEL.FREEZE", ["pixel_decoder."]]
SCALE = 256.0
# Targets of 8 samples. More than the 4 queries; none in one half; one alone; none at all.
COUNTS = {
    "mixed": (1, 0, 2, 6, 1, 1, 0, 3),
    "half_empty": (0, 0, 0, 0, 2, 1, 1, 0),
    "single": (0, 0, 0, 0, 0, 1, 0, 0),
    "empty": (0,) * 8,
}


def make_model(opts=()):
    torch.manual_seed(0)
    model = build_model(tiny_cfg([*EXACT, *opts]))
    if model.grounding_head is not None:
        # Zeros at the start would leave parts of the model without a gradient.
        nn.init.normal_(model.grounding_head.predictor.box_embed.layers[-1].weight, std=0.1)
    return model


def gradients(model, batch, parts=1, **kwargs):
    """Losses and gradients by name."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = GroundingStepTrainer(model, [], optimizer, **kwargs)
    if trainer.grad_scaler is not None:
        # Its first scale is a guess that overflows, and is then halved.
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    losses = trainer.accumulate(split_batch(batch, parts))
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return losses, {name: grad.clone() for name, grad in grads.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def assert_relative(found, expected):
    """Also where gradients are small: the difference is 1e-5 of the total norm."""
    norm = torch.stack([x.norm() for x in expected.values()]).norm()
    off = torch.stack([(found[name] - x).norm() for name, x in expected.items()]).norm()
    assert off < 1e-5 * norm and norm > 1e-3


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("opts", [[], FROZEN], ids=["paper", "frozen"])
def test_two_micro_batches_equal_the_whole_batch(name, opts):
    batch = random_batch(COUNTS[name])
    expected_losses, expected = gradients(make_model(opts), batch)
    for parts in (2, 4):
        losses, found = gradients(make_model(opts), batch, parts)
        assert_same(losses, expected_losses)
        assert_same(found, expected)
        assert_relative(found, expected)


def test_a_mean_over_micro_batches_would_differ():
    """What the test above would miss if it compared too loosely."""
    batch = random_batch(COUNTS["mixed"])
    expected = gradients(make_model(), batch)[1]
    model = make_model()
    for part in split_batch(batch, 2):
        (sum(model(part).values()) / 2).backward()
    naive = {name: p.grad for name, p in model.named_parameters()}
    with pytest.raises(AssertionError):
        assert_relative(naive, expected)


SYNC_BN = ["MODEL.PIXEL_DECODER.NORM", "SyncBN"]
CASES = [(name, parts, []) for name in COUNTS for parts in (1, 2)] + [("mixed", 1, SYNC_BN)]


def work(rank):
    """One of two processes: the gradients of its half of each batch, whole and in two parts."""
    results = {}
    for name, parts, norm in CASES:
        model = nn.parallel.DistributedDataParallel(make_model(norm), broadcast_buffers=False)
        LossGuard(model.module)
        half = split_batch(random_batch(COUNTS[name]), 2)[rank]
        found = gradients(model, half, parts)[1]
        found = {k.removeprefix("module."): v.numpy() for k, v in found.items()}
        results[name, parts, tuple(norm)] = found
    return results


def test_two_processes_equal_one(in_two_processes):
    results = in_two_processes(work)[0]
    assert len(results) == len(CASES)
    for (name, _, norm), found in results.items():
        expected = gradients(make_model(norm), random_batch(COUNTS[name]))[1]
        found = {key: torch.from_numpy(value) for key, value in found.items()}
        assert_same(found, expected)
        assert_relative(found, expected)


def test_no_exchange_before_the_last_micro_batch():
    class Wrapped(nn.Module):
        """Counts forward passes outside of no_sync."""

        def __init__(self):
            super().__init__()
            self.w, self.waiting, self.log = nn.Parameter(torch.ones(())), False, []

        def no_sync(self):
            class Context:
                __enter__ = lambda _: setattr(self, "waiting", True)  # noqa: E731
                __exit__ = lambda _, *error: setattr(self, "waiting", False)  # noqa: E731

            return Context()

        def forward(self, batch):
            self.log.append((len(batch), self.waiting))
            return {"loss_a": self.w * sum(batch)}

    model = Wrapped()
    losses, grads = gradients(model, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], parts=3)
    assert model.log == [(2, True), (2, True), (2, False)]
    assert losses["loss_a"] == grads["w"] == 7.0


def test_a_bad_micro_batch_is_passed_over_alone():
    """The others keep their share of the gradient, and the samples of the bad one are named."""
    batch = random_batch([1, 0, 1, 2])
    model = make_model()
    LossGuard(model)
    batch[3]["image"] = torch.full((3, 64, 64), float("nan"))
    with EventStorage(), pytest.raises(FloatingPointError, match="samples 2 .*, 3 "):
        gradients(model, batch, parts=2)
    model = make_model()
    totals = BatchTotals.count(split_batch(batch, 2), torch.device("cpu"))
    part = [{**sample, "batch_totals": totals} for sample in batch[:2]]
    (sum(model(part).values()) / 2).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    skipping = make_model()
    log = BadSampleLog(make_model(), "")
    LossGuard(skipping, log)
    with EventStorage():
        assert_same(gradients(skipping, batch, parts=2)[1], expected)
    assert [sample["sample_id"] for sample in log._pending] == ["2", "3"]


def test_a_step_without_options_is_that_of_detectron2():
    batch = random_batch([1, 0, 2, 1])
    states = []
    for trainer_class in (SimpleTrainer, GroundingStepTrainer):
        model = make_model()
        trainer = trainer_class(
            model, [batch, batch], torch.optim.Adam(model.parameters(), lr=0.01)
        )
        with EventStorage() as storage:
            for trainer.iter in range(2):
                trainer.run_step()
        states.append((model.state_dict(), storage.latest()["total_loss"]))
    assert states[0][1] == states[1][1]
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name]), name


def test_a_batch_that_cannot_be_cut_is_refused():
    assert split_batch(list("abcdef"), 3) == [["a", "b"], ["c", "d"], ["e", "f"]]
    with pytest.raises(ValueError, match="7 samples .*ACCUMULATION_STEPS"):
        split_batch(list("abcdefg"), 3)


VARIANTS = {
    "paper": [],
    "frozen": FROZEN,
    "text_guided": ["MODEL.QUERY_GENERATOR.NAME", "TextGuidedQueryGenerator"],
    "released": ["MODEL.QUERY_GENERATOR.ATTENTION", "decoder_layer",
                 "MODEL.QUERY_GENERATOR.POOL", "max", "MODEL.GROUNDING_HEAD.REFERENCE", "shifted"],
    "detr": ["MODEL.GROUNDING_HEAD.DECODER", "DETRDecoder",
             "MODEL.GROUNDING_HEAD.IN_FEATURES", ["p4"]],
    "checkpointing": ["MODEL.BEIT3.CHECKPOINTING", True, "MODEL.PIXEL_DECODER.NORM", "BN",
                      "MODEL.GLOBAL_HEAD.NO_TARGET_INPUT", "pixels+pooled"],
}  # fmt: skip


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_in_float32_and_close_under_autocast(name, precision, monkeypatch):
    """With the points of the full precision: of two that are almost alike, rounding chooses."""
    select, chosen = PointGuidedQueryGenerator._select_points, []

    def select_once(self, heatmap):
        chosen.extend([] if chosen else [select(self, heatmap)])
        return chosen[0]

    monkeypatch.setattr(PointGuidedQueryGenerator, "_select_points", select_once)
    batch = random_batch([1, 0, 2, 1])
    expected, full = gradients(make_model(VARIANTS[name]), batch)
    model = make_model([*VARIANTS[name], "VIS_PERIOD", 1])
    with EventStorage():
        losses, found = gradients(model, batch, precision=precision)
    scale = 1.0 if precision is torch.bfloat16 else SCALE
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        assert value.dtype == torch.float32, key
        torch.testing.assert_close(value, expected[key], rtol=0.03, atol=0.003, msg=key)
    assert all(torch.isfinite(grad).all() for grad in found.values())
    key = "global_head.predictor.weight"
    torch.testing.assert_close(found[key] / scale, full[key], rtol=0.05, atol=0.02)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=precision):
        results = model(batch)
    assert all(r["no_target_score"].dtype == torch.float32 for r in results)


class Line(nn.Module):
    """Loss w * x of the only sample."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        return {"loss_a": self.w * batch[0]}


def make_scaled(clip=0.0):
    """fp16 with a scale of 2^16, SGD with learning rate 1."""
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    clip_total_norm(optimizer, clip)
    batches = [[3.0], [float("inf")], [3.0]]
    return GroundingStepTrainer(model, batches, optimizer, precision=torch.float16)


def test_fp16_clips_unscaled_gradients_and_leaves_overflows_out():
    trainer = make_scaled(clip=0.5)
    norms, weights, scales = [], [], []
    with EventStorage() as storage:
        for trainer.iter in (0, 1, 2):
            # The second loss is infinite, which the guard would have stopped.
            trainer._write_metrics = lambda losses, data_time: None
            trainer.run_step()
            norms.append(storage.latest()["grad_norm"][0])
            scales.append(storage.latest()["amp_scale"][0])
            weights.append(trainer.model.w.item())
    assert norms == pytest.approx([3.0, 3.0, 3.0])
    assert weights == pytest.approx([0.5, 0.5, 0.0], abs=1e-5)
    assert scales == [65536.0, 32768.0, 32768.0]
    # The scale is part of a checkpoint.
    other = make_scaled()
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == 32768.0
    plain = GroundingStepTrainer(Line(), [], torch.optim.SGD(Line().parameters(), lr=1.0))
    assert "grad_scaler" not in plain.state_dict()
    other.load_state_dict(plain.state_dict())
    plain.load_state_dict(trainer.state_dict())
