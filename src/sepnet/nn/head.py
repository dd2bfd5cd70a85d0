"""Classifier heads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.nn.conv import check_positive

__all__ = ["FlattenMLPHead"]


class FlattenMLPHead(nn.Module):
    """Flatten, FC 384, FC 192, classifier, ReLU between: the head of Wang et al. 2018 (Table 1, Fc1 and Fc2).

    Shape: (B, C, H, W) with C*H*W = in_features -> (B, num_classes); (B, 192) with ``pre_logits``.

    Raises:
        ValueError: a size less than 1, or an input with another number of features (the message shows both shapes).
    """

    def __init__(self, in_features: int, num_classes: int, hidden: tuple[int, int] = (384, 192)) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes)
        self.in_features = in_features
        self.fc1 = nn.Linear(in_features, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.classifier = nn.Linear(hidden[1], num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        flat = x.flatten(1)
        if flat.shape[1] != self.in_features:
            raise ValueError(
                f"features of shape {tuple(x.shape)} hold {flat.shape[1]} values an image, the head expects {self.in_features}: "
                "build the network with the input_size of its images"
            )
        hidden = F.relu(self.fc2(F.relu(self.fc1(flat))))
        return hidden if pre_logits else self.classifier(hidden)
