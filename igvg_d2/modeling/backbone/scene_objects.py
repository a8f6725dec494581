"""Objects of a scene as a few slots, found without the expression."""

import torch
import torch.nn.functional as F
from torch import nn

from .build import SceneObjects

# Cells compete for slots by squared distance in cells; one cell off costs this much.
_DISTANCE_SHARPNESS = 2.0
# Centres are rare: the loss starts near its floor.
_CENTER_BIAS = -3.0


class ObjectFinder(nn.Module):
    """Centre points and votes for them, as CenterNet and Panoptic-DeepLab find objects.

    Every cell says whether it is the centre of an object and where the centre of its own object is
    (Zhou et al., "Objects as Points", 2019; Cheng et al., Panoptic-DeepLab, CVPR 2020). The best
    local maxima become slots; a cell belongs to the slot nearest to the point it votes for.
    """

    def __init__(self, width: int, embed_dim: int, num_objects: int):
        """
        Args:
            width: channels of the features that are searched.
            embed_dim: C, channels of the features that are averaged.
            num_objects: K.
        """
        super().__init__()
        self.num_objects = num_objects
        self.hidden = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.predictor = nn.Conv2d(width, 4, kernel_size=1)
        self.area = nn.Linear(1, embed_dim)
        nn.init.constant_(self.predictor.bias[0], _CENTER_BIAS)

    def forward(self, x: torch.Tensor, cells: torch.Tensor) -> SceneObjects:
        """
        Args:
            x: float (N, width, h, w).
            cells: float (N, C, h, w), what is averaged over the cells of an object.

        Raises:
            ValueError: fewer cells than slots.
        """
        height, width = x.shape[-2:]
        if height * width < self.num_objects:
            raise ValueError(
                f"MODEL.BEIT3.STEM_OBJECTS = {self.num_objects} needs as many cells, but the "
                f"stem has {height} x {width}; enlarge INPUT.IMAGE_SIZE."
            )
        # In 16 bits a position would be off by up to 1/256 of the picture.
        maps = self.predictor(F.gelu(self.hidden(x))).float()
        center, foreground = maps[:, 0], maps[:, 3]
        middles = cell_middles(height, width, maps)
        votes = middles + maps[:, 1:3].flatten(2).transpose(1, 2)
        peaks = F.max_pool2d(center[:, None], kernel_size=3, stride=1, padding=1)[:, 0]
        scores = center.masked_fill(center < peaks, float("-inf")).flatten(1)
        index = scores.topk(self.num_objects, dim=1).indices
        centers = votes.gather(1, index[..., None].expand(-1, -1, 2))
        squared = (votes[:, :, None] - centers[:, None]).square().sum(-1)
        own = (-_DISTANCE_SHARPNESS * squared).softmax(dim=-1)
        assignment = own * foreground.flatten(1).sigmoid()[..., None]
        area = assignment.sum(dim=1)[..., None]
        mean = assignment.transpose(1, 2) @ cells.flatten(2).transpose(1, 2) / (area + 1e-3)
        size = maps.new_tensor([width, height])
        # Where there are fewer peaks than slots, the rest are cells beside a peak.
        is_peak = scores.gather(1, index).isfinite()
        exists = center.flatten(1).gather(1, index).masked_fill(~is_peak, -10.0)
        return SceneObjects(
            center_logits=center,
            foreground_logits=foreground,
            cell_middles=middles,
            votes=votes,
            positions=centers / size,
            exists_logits=exists,
            assignment=assignment,
            features=mean + self.area(torch.log1p(area)),
        )


def cell_middles(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Middles of the cells of a grid, float (height * width, 2), (x, y) in cells, row by row."""
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
