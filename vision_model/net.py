"""The encoder and its linear heads: a timm vision transformer read out at several depths."""

from vision_model import torchvision_shim

# isort: split
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vision_model.data.tasks import Curriculum

__all__ = ["HilumNet", "torchvision_shim"]

TAPS = (7, 9, 11)  # blocks 8, 10 and 12: sources differ in which depth serves them best
WIDTH = 384
TOKEN_SCALE = 8.0  # the final norm of the initial weights makes tokens of deviation 4 with outliers of 60
EMBEDDING_SIZE = WIDTH * len(TAPS)


class HilumNet(nn.Module):
    """ViT-S/14 whose patch tokens of several blocks are normed and laid side by side; heads are linear on their mean.

    The mean comes after the norm and the head is linear, so every logit is exactly the mean of its patches' logits:
    that is the explanation. The class token takes part in attention and is not read out.
    """

    def __init__(self, curriculum: Curriculum, *, size: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.encoder = timm.create_model(
            "vit_small_patch14_dinov2", num_classes=0, img_size=size, drop_path_rate=drop_path
        )
        self.head = nn.Linear(EMBEDDING_SIZE, curriculum.logits)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> patch tokens (B, T, D)."""
        taps = self.encoder.forward_intermediates(
            images, indices=list(TAPS), norm=True, output_fmt="NLC", intermediates_only=True
        )
        return torch.cat(taps, dim=-1)

    def unit_features(self, images: Tensor) -> Tensor:
        """Patch tokens (B, T, D) as they ship: of about unit size, so that 1e-4 means the same as for a logit."""
        return self.forward_features(images) / TOKEN_SCALE

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Patch tokens (B, T, D) -> logits (B, C)."""
        return functional.linear(tokens.mean(dim=1), self.head.weight, self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> logits (B, C)."""
        return self.forward_head(self.forward_features(images))

    def parameter_groups(self, *, rate: float, decay: float, layer_decay: float, frozen_blocks: int) -> list[dict]:  # type: ignore[type-arg]  # torch's own shape
        """Optimiser groups: rate · layer_decay^(depth from the top); no weight decay on biases, norms and scales."""
        groups = []
        blocks = len(self.encoder.blocks)
        for name, parameter in self.named_parameters():
            if name.startswith("encoder.blocks."):
                depth = int(name.split(".")[2])
            elif name.startswith(("head", "encoder.norm")):
                depth = blocks
            else:
                depth = 0  # patch embedding, position and class token go with the first block
            if depth < frozen_blocks:
                parameter.requires_grad = False
                continue
            groups.append(
                {
                    "params": [parameter],
                    "lr": rate * layer_decay ** (blocks - depth) * (10 if name.startswith("head") else 1),
                    "weight_decay": decay if parameter.ndim > 1 else 0.0,
                }
            )
        return groups
