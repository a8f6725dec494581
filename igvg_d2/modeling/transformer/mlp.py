"""Multi-layer perceptron of the DETR family."""

import torch
import torch.nn.functional as F
from torch import nn


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        """
        Args:
            in_dim, hidden_dim, out_dim: channels of input, inner layers and output.
            num_layers: linear layers, at least 1.
        """
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (..., in_dim) -> float (..., out_dim)."""
        return self.layers[-1](self.hidden(x))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Everything before the last linear layer: float (..., in_dim) -> (..., hidden_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return x
