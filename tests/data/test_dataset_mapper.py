"""GroundingDatasetMapper on 0, 1 and many targets, and its refusals."""

import copy
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BitMasks, BoxMode
from PIL import Image

from igvg_d2.config import add_igvg_config
from igvg_d2.data import (
    AntialiasedResize,
    GroundingDatasetMapper,
    ReleasedResize,
    build_grounding_test_loader,
    build_grounding_train_loader,
)
from igvg_d2.data.loader import pack_batch

HEIGHT, WIDTH = 60, 100
LEFT, RIGHT = (10, 10, 40, 30), (60, 20, 90, 50)  # XYXY


def tokenizer(expression):
    """BOS, the length of each word, EOS."""
    return [0, *(10 + len(word) for word in expression.split()), 2]


def make_mapper(is_train=True, image_size=(32, 48), rule=AntialiasedResize, **kwargs):
    """A mapper without files behind its tokenizer."""
    arguments = {"tokenizer": tokenizer, "image_format": "RGB", **kwargs}
    return GroundingDatasetMapper(is_train, resize=rule(image_size=image_size), **arguments)


@pytest.fixture
def make_sample(tmp_path):
    """Callable: boxes XYXY -> dataset dict; the image is black with the boxes in red."""

    def _make_sample(boxes, expression="the left one", size=(HEIGHT, WIDTH), number=0):
        pixels = np.zeros((*size, 3), np.uint8)
        annotations = []
        for x0, y0, x1, y1 in boxes:
            pixels[y0:y1, x0:x1, 0] = 255
            mask = np.zeros(size, np.uint8, order="F")
            mask[y0:y1, x0:x1] = 1
            annotations.append(
                {
                    "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 0,
                    "segmentation": mask_util.encode(mask),
                    "iscrowd": 0,
                }
            )
        file_name = str(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(file_name)
        return {
            "file_name": file_name,
            "height": size[0],
            "width": size[1],
            "image_id": number,
            "sample_id": f"{number}_0",
            "ref_id": number,
            "sent_id": 0,
            "expression": expression,
            "annotations": annotations,
        }

    return _make_sample


def assert_boxes_fit_masks(instances, tolerance=1.0):
    """Each box is the tight box of its mask, up to the rounding of mask edges to pixels."""
    tight = instances.gt_masks.get_bounding_boxes().tensor
    assert (tight - instances.gt_boxes.tensor).abs().max() <= tolerance


def assert_same(ours, other):
    """Two mapped samples agree in every key."""
    assert ours.keys() == other.keys()
    for key, value in ours.items():
        if key == "instances":
            assert torch.equal(value.gt_boxes.tensor, other[key].gt_boxes.tensor)
            assert torch.equal(value.gt_masks.tensor, other[key].gt_masks.tensor)
            assert torch.equal(value.gt_classes, other[key].gt_classes)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]) and value.dtype == other[key].dtype
        else:
            assert value == other[key]


@pytest.mark.parametrize("boxes", [(), (LEFT,), (LEFT, RIGHT)])
@pytest.mark.parametrize("rule", [AntialiasedResize, ReleasedResize])
def test_training_output(make_sample, boxes, rule):
    sample = make_sample(boxes)
    before = copy.deepcopy(sample)
    mapped = make_mapper(rule=rule)(sample)
    assert sample == before
    assert mapped["image"].shape == (3, 32, 48) and mapped["image"].dtype == torch.uint8
    assert (mapped["height"], mapped["width"]) == (HEIGHT, WIDTH)
    assert mapped["text_ids"].tolist() == [0, 13, 14, 13, 2]
    assert mapped["text_ids"].dtype == torch.int64
    assert mapped["text_padding_mask"].tolist() == [False] * 5
    for key in ("expression", "sample_id", "file_name", "image_id"):
        assert mapped[key] == before[key]
    assert "annotations" not in mapped
    instances = mapped["instances"]
    assert instances.image_size == (32, 48) and len(instances) == len(boxes)
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_masks.tensor.shape == (len(boxes), 32, 48)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_boxes.tensor.shape == (len(boxes), 4)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.tolist() == [0] * len(boxes)
    if boxes:
        assert_boxes_fit_masks(instances)
        scale = np.array([48 / WIDTH, 32 / HEIGHT] * 2)
        expected = np.array(boxes) * scale
        assert np.allclose(instances.gt_boxes.tensor.numpy(), expected, atol=1e-4)


def test_inference_output_has_no_targets_and_no_augmentation(make_sample):
    settings = {"horizontal_flip_prob": 1.0, "vertical_flip_prob": 1.0, "color_jitter": 0.5}
    sample = make_sample([LEFT])
    mapped = make_mapper(False, **settings)(sample)
    assert "instances" not in mapped and "annotations" not in mapped
    assert mapped["expression"] == "the left one"
    assert torch.equal(mapped["image"], make_mapper()(sample)["image"])
    del sample["annotations"], sample["height"], sample["width"]
    assert make_mapper(False)(sample)["height"] == HEIGHT  # a user's own image


@pytest.mark.parametrize(
    "axis, expression, swapped",
    [("horizontal", "the left one", "the right one"), ("vertical", "Top one", "Bottom one")],
)
def test_flips_keep_image_boxes_masks_and_text_together(make_sample, axis, expression, swapped):
    sample = make_sample([LEFT, RIGHT], expression)
    plain = make_mapper()(sample)
    flipped = make_mapper(**{f"{axis}_flip_prob": 1.0})(sample)
    dim = -1 if axis == "horizontal" else -2
    assert torch.equal(flipped["image"], plain["image"].flip(dim))
    masks = flipped["instances"].gt_masks.tensor
    assert torch.equal(masks, plain["instances"].gt_masks.tensor.flip(dim))
    assert_boxes_fit_masks(flipped["instances"])
    assert flipped["expression"] == swapped
    assert flipped["text_ids"].tolist() == tokenizer(swapped)
    # The red of the image is where the masks are.
    red = flipped["image"][0] > 127
    assert (red == masks.any(0)).float().mean() > 0.99


def test_expressions_that_cannot_be_swapped_are_not_flipped(make_sample):
    sample = make_sample([LEFT], "the one at 3 o'clock")
    assert_same(make_mapper(horizontal_flip_prob=1.0)(sample), make_mapper()(sample))


def test_flips_happen_with_their_probability(make_sample):
    sample = make_sample([])
    mapper = make_mapper(horizontal_flip_prob=0.25)
    np.random.seed(0)
    flips = sum(mapper(sample)["expression"] == "the right one" for _ in range(200))
    assert 30 <= flips <= 70


def test_color_jitter_changes_the_image_only(make_sample):
    sample = make_sample([LEFT])
    plain = make_mapper()(sample)
    np.random.seed(0)
    jittered = make_mapper(color_jitter=0.4)(sample)
    assert not torch.equal(jittered.pop("image"), plain.pop("image"))
    assert_same(jittered, plain)


@pytest.mark.parametrize("size", [(30, 90), (90, 30), (7, 200)])
def test_elongated_images_are_squashed(make_sample, size):
    height, width = size
    box = (0, height // 2, width // 2, height)
    instances = make_mapper(image_size=(40, 40))(make_sample([box], size=size))["instances"]
    scaled = [0, 40 * (height // 2) / height, 20, 40]
    assert np.allclose(instances.gt_boxes.tensor[0].numpy(), scaled, atol=1e-4)
    assert_boxes_fit_masks(instances)


def test_image_format_and_exif_orientation(make_sample, tmp_path):
    sample = make_sample([LEFT])
    rgb = make_mapper()(sample)["image"]
    assert torch.equal(make_mapper(image_format="BGR")(sample)["image"], rgb.flip(0))
    exif = Image.Exif()
    exif[274] = 6  # shown after a rotation by 90 degrees
    sideways = np.zeros((WIDTH, HEIGHT, 3), np.uint8)
    sample["file_name"] = str(tmp_path / "rotated.jpg")
    Image.fromarray(sideways).save(sample["file_name"], exif=exif)
    make_mapper()(sample)  # its size fits only when the orientation is applied


def test_damaged_and_missing_images_are_named(make_sample, tmp_path):
    sample = make_sample([LEFT])
    sample["file_name"] = str(tmp_path / "cut.jpg")
    noise = np.random.RandomState(0).randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(sample["file_name"])
    content = (tmp_path / "cut.jpg").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no image"):
        (tmp_path / "cut.jpg").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"image of sample 0_0 .*cannot decode .*cut\.jpg"):
            make_mapper()(sample)
    sample["file_name"] = str(tmp_path / "nothing.jpg")
    with pytest.raises(FileNotFoundError, match=r"no image file for sample 0_0 .*nothing\.jpg"):
        make_mapper()(sample)


def test_wrong_sizes_are_named(make_sample):
    sample = make_sample([LEFT])
    sample["height"], sample["width"] = WIDTH, HEIGHT
    with pytest.raises(SizeMismatchError, match=r"sample 0_0 .*\(60, 100\).*\(100, 60\)"):
        make_mapper()(sample)
    sample = make_sample([LEFT])
    sample["annotations"][0]["segmentation"]["size"] = [WIDTH, HEIGHT]
    with pytest.raises(ValueError, match=r"segmentation of sample 0_0 .*size \[60, 100\]"):
        make_mapper()(sample)
    sample["annotations"][0]["segmentation"] = None
    with pytest.raises(ValueError, match="segmentation of sample 0_0 .*None"):
        make_mapper()(sample)


def test_polygons_and_other_box_modes_of_own_data(make_sample):
    sample = make_sample([LEFT])
    plain = make_mapper()(sample)
    x0, y0, x1, y1 = map(float, LEFT)
    sample["annotations"][0]["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    sample["annotations"][0].update(bbox=[x0, y0, x1, y1], bbox_mode=BoxMode.XYXY_ABS)
    assert_same(make_mapper()(sample), plain)
    sample["annotations"] = sample["annotations"] + make_sample([RIGHT])["annotations"]
    with pytest.raises(ValueError, match="bbox_mode of sample 0_0"):
        make_mapper()(sample)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="INPUT.FORMAT: .*'L'"):
        make_mapper(image_format="L")
    with pytest.raises(ValueError, match="INPUT.FLIP.VERTICAL_PROB: .*1.5"):
        make_mapper(vertical_flip_prob=1.5)
    with pytest.raises(ValueError, match="INPUT.COLOR_JITTER: .*-1"):
        make_mapper(color_jitter=-1.0)


@pytest.fixture
def cfg():
    """Configuration of a Shapes-like run that needs no file for its tokenizer."""
    cfg = get_cfg()
    add_igvg_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = (32, 48)
    cfg.INPUT.TOKENIZER.NAME = "ShapesTokenizer"
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.SOLVER.IMS_PER_BATCH = 4
    return cfg


def test_from_config(cfg):
    cfg.INPUT.FLIP.HORIZONTAL_PROB = 0.5
    cfg.INPUT.COLOR_JITTER = 0.1
    mapper = GroundingDatasetMapper(cfg, is_train=True)
    assert mapper.is_train and mapper.resize.image_size == (32, 48)
    assert mapper.flip_probs == {"horizontal": 0.5, "vertical": 0.0}
    assert mapper.color_jitter == 0.1
    assert mapper.tokenizer("the left square")[0] == 0
    cfg.INPUT.CROP.ENABLED = True
    with pytest.raises(ValueError, match="INPUT.CROP.ENABLED: expected False"):
        GroundingDatasetMapper(cfg, is_train=False)


@pytest.fixture
def dataset(make_sample):
    """Name of a registered data set of six samples, every third without a target."""
    boxes = [[], [LEFT], [LEFT, RIGHT]]
    words = ["the red square", "all circles", "the left star"]
    samples = [make_sample(boxes[i % 3], words[i % 3], number=i) for i in range(6)]
    name = "mapper_test_data"
    DatasetCatalog.register(name, lambda: samples)
    MetadataCatalog.get(name).set(thing_classes=["target"])
    return name


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_give_what_the_mapper_gives(cfg, dataset, num_workers):
    cfg.DATALOADER.NUM_WORKERS = num_workers
    cfg.DATASETS.TRAIN = (dataset,)
    samples = DatasetCatalog.get(dataset)
    loader = build_grounding_test_loader(cfg, dataset, batch_size=4)
    assert len(loader) == 2
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 2]
    mapper = GroundingDatasetMapper(cfg, is_train=False)
    for sample, mapped in zip(samples, sum(batches, [])):
        assert_same(mapped, mapper(sample))
    mapper = GroundingDatasetMapper(cfg, is_train=True)
    batches = iter(build_grounding_train_loader(cfg))
    seen = set()
    for mapped in next(batches) + next(batches) + next(batches):
        assert_same(mapped, mapper(samples[mapped["image_id"]]))
        mapped["image"].fill_(0)  # the tensors can be written to
        seen.add(mapped["image_id"])
    assert seen == set(range(6))  # no-target samples are not filtered away


def test_masks_are_asked_for_in_the_frames_of_the_protocols(cfg, dataset):
    cfg.TEST.PROTOCOLS = ("released", "official", "native", "official_native")
    sample = DatasetCatalog.get(dataset)[0]
    assert GroundingDatasetMapper(cfg, is_train=False)(sample)["frame_sizes"] == (320, 480)
    assert "frame_sizes" not in GroundingDatasetMapper(cfg, is_train=True)(sample)


def test_packed_batches_are_restored(make_sample):
    batch = [make_mapper()(make_sample(boxes)) for boxes in ([], [LEFT, RIGHT])]
    for ours, other in zip(pickle.loads(pack_batch(batch)), batch):
        assert_same(ours, other)
        assert ours["instances"].image_size == other["instances"].image_size
