"""Data sets, dataset mapper, augmentation, tokenizers and loaders."""

from . import datasets
from .augmentation import jitter_color
from .bad_samples import REPORT_KEY, BadSampleError
from .build import (
    GroundingTrainLoader,
    build_grounding_test_loader,
    build_grounding_train_loader,
)
from .dataset_mapper import GroundingDatasetMapper
from .directions import is_flippable, swap_direction_words
from .resize import (
    AntialiasedResize,
    LetterboxResize,
    ReleasedResize,
    SquashResize,
    build_resize,
)
from .tokenizer import TOKENIZER_REGISTRY, BEiT3Tokenizer, ShapesTokenizer, build_tokenizer
