"""Data sets, dataset mapper, augmentation, tokenizers and loaders."""

from . import datasets
from .bad_samples import REPORT_KEY, BadSampleError
from .directions import is_flippable, swap_direction_words
from .loader import (
    GroundingTrainLoader,
    build_grounding_test_loader,
    build_grounding_train_loader,
)
from .mapper import GroundingDatasetMapper, model_input
from .resize import (
    AntialiasedResize,
    LetterboxResize,
    ReleasedResize,
    SquashResize,
    build_resize,
)
from .tokenizer import (
    TOKENIZER_REGISTRY,
    BEiT3Tokenizer,
    ShapesTokenizer,
    add_special_ids,
    build_tokenizer,
)
from .transforms import GeometricTransform, jitter_color
