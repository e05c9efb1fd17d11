"""The encoder and what is trained on it: a timm vision transformer read out at several depths, with linear heads."""

from typing import Any, NamedTuple

from vision_model import torchvision_shim

# isort: split
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vision_model.data.tasks import Curriculum

__all__ = ["HilumNet", "torchvision_shim"]

TAPS = (7, 9, 11)  # blocks 8, 10 and 12: sources differ in which depth serves them best
UNTRAINED_TAP = 7  # block 8: of the initial weights the one that frozen probes read best
SURROUNDINGS = 10 / 224  # deviation of the blur that an image is compared with, of the image's side
LEAST_CONTRAST = 0.1  # in normalised values, about 6 of 255 levels: below it is noise
MOST_CONTRAST = 3.0  # of the surroundings' own
PATCH = 14
WIDTH = 384
TOKEN_SCALE = 8.0  # the final norm of the initial weights makes tokens of deviation 4 with outliers of 60
TAP_SIZE = 2 * WIDTH  # a patch's own token, then the class token
TRAINED_SIZE = TAP_SIZE * len(TAPS)
UNTRAINED_SIZE = 2 * TAP_SIZE  # of two views
EMBEDDING_SIZE = TRAINED_SIZE + UNTRAINED_SIZE  # as it ships
TEXT_SIZE = 384  # of all-MiniLM-L6-v2
PROJECTED = 128  # what self-distillation compares


class Outputs(NamedTuple):
    """What training looks at, for B images."""

    logits: Tensor  # (B, C): route, then task after task
    text: Tensor  # (B, TEXT_SIZE), unit length
    text_scale: Tensor  # (), logarithm of the factor on cosines
    projected: Tensor  # (B, PROJECTED), unit length


def new_encoder(size: int, *, drop_path: float = 0.0, patch_drop: float = 0.0) -> Any:  # timm's own class, untyped
    """A ViT-S/14 for images (B, 3, size, size), its weights random."""
    return timm.create_model(
        "vit_small_patch14_dinov2",
        num_classes=0,
        img_size=size,
        drop_path_rate=drop_path,
        patch_drop_rate=patch_drop,
    )


def read_out(encoder: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, T, D): for each tap the patch's token and the class token, all normed."""
    taps: list[tuple[Tensor, Tensor]] = encoder.forward_intermediates(  # type: ignore[operator]  # timm's own method
        images, indices=list(TAPS), norm=True, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    return torch.cat([side_by_side(patches, prefix) for patches, prefix in taps], dim=-1)


def side_by_side(patches: Tensor, prefix: Tensor) -> Tensor:
    """Patch tokens (B, T, W) and the class token (B, 1, W) -> (B, T, 2W)."""
    return torch.cat([patches, prefix.expand_as(patches)], dim=-1)


class HilumNet(nn.Module):
    """ViT-S/14 whose tokens of several blocks are normed and laid side by side; heads are linear on the patches' mean.

    The mean comes after the norm and the head is linear, so every logit is exactly the mean of its patches' logits:
    that is the explanation. The same holds for the projection into text space. The class token stands beside every
    patch, so what it says of the image belongs to all patches alike, as the bias does. `patch_drop` is the share of
    patches that a training image loses (PatchDropout, Liu et al. 2022, arXiv 2208.07220): it makes larger images
    affordable, and no patch indispensable.
    """

    def __init__(self, curriculum: Curriculum, *, size: int, drop_path: float = 0.0, patch_drop: float = 0.0) -> None:
        super().__init__()
        self.encoder = new_encoder(size, drop_path=drop_path, patch_drop=patch_drop)
        self.head = nn.Linear(TRAINED_SIZE, curriculum.logits)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.to_text = nn.Linear(TRAINED_SIZE, TEXT_SIZE)
        self.text_scale = nn.Parameter(torch.tensor(10.0).log())
        self.projector = nn.Sequential(nn.Linear(TRAINED_SIZE, 512), nn.GELU(), nn.Linear(512, PROJECTED))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> patch tokens (B, T, D)."""
        return read_out(self.encoder, images)

    def unit_features(self, images: Tensor) -> Tensor:
        """Patch tokens (B, T, D) as they ship: of about unit size, so that 1e-4 means the same as for a logit."""
        return self.forward_features(images) / TOKEN_SCALE

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, S, S) -> everything that is trained; the encoder in bf16 under autocast, what follows in fp32."""
        tokens = self.forward_features(images)
        with torch.autocast(tokens.device.type, enabled=False):
            pooled = tokens.float().mean(dim=1)
            return Outputs(
                logits=self.head(pooled),
                text=functional.normalize(self.to_text(pooled / TOKEN_SCALE), dim=-1),
                text_scale=self.text_scale.clone(),  # DistributedDataParallel takes no bare parameter as an output
                projected=functional.normalize(self.projector(pooled / TOKEN_SCALE), dim=-1),
            )

    def parameter_groups(self, *, rate: float, decay: float, layer_decay: float, frozen_blocks: int) -> list[dict]:  # type: ignore[type-arg]  # torch's own shape
        """Optimiser groups: rate · layer_decay^(depth from the top); no weight decay on biases, norms and scales."""
        groups = []
        blocks = len(self.encoder.blocks)
        for name, parameter in self.named_parameters():
            new = name.startswith(("head", "to_text", "text_scale", "projector"))
            if name.startswith("encoder.blocks."):
                depth = int(name.split(".")[2])
            elif new or name.startswith("encoder.norm"):
                depth = blocks
            else:
                depth = 0  # patch embedding, position and class token go with the first block
            if depth < frozen_blocks:
                parameter.requires_grad = False
                continue
            groups.append(
                {
                    "params": [parameter],
                    "lr": rate * layer_decay ** (blocks - depth) * (10 if new else 1),
                    "weight_decay": decay if parameter.ndim > 1 else 0.0,
                }
            )
        return groups


class PerChannel(nn.Module):
    """One factor for each channel, before the second layer of an MLP: see `quantise.smooth`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same."""
        return x * self.weight


class Untrained(nn.Module):
    """The first blocks of the initial weights on two small views of the image: what no training has moved.

    A source of few patients pulls trained features towards those patients, and neither `train` nor `val` shows it.
    Answers of trained and untrained features together hold better where images come from elsewhere (Wortsman et al.
    2022, arXiv 2109.01903). One view is the image, smaller. The other shows, in place of light and colour, what differs
    from its surroundings, measured by how much things differ there (local contrast normalisation, Jarrett et al. 2009,
    doi 10.1109/ICCV.2009.5459469): meant for small lesions. Views are made, and their tokens are brought to the
    image's own patches, by fixed matrices: every provider runs them, and a token's share of the image stays what it
    was, so maps still sum to the logits.
    """

    blur: Tensor  # (S, S), rows sum to 1
    shrink: Tensor  # (V, S), antialiased bilinear
    spread: Tensor  # (T, T of the view), rows sum to 1

    def __init__(self, *, size: int, view: int) -> None:
        super().__init__()
        self.encoder = new_encoder(view)
        self.encoder.blocks = self.encoder.blocks[: UNTRAINED_TAP + 1]
        place = torch.arange(size) / (size * SURROUNDINGS)
        self.register_buffer("blur", (-(place[:, None] - place).square() / 2).softmax(dim=1))
        each_column = torch.eye(size)[None, None]
        self.register_buffer(
            "shrink", functional.interpolate(each_column, size=(view, size), mode="bilinear", antialias=True)[0, 0]
        )
        grid, own = size // PATCH, view // PATCH
        overlap = torch.eye(own).repeat_interleave(grid, dim=0).reshape(grid, own, own).mean(dim=1)
        self.register_buffer("spread", torch.kron(overlap, overlap))

    def contrast(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> the same, from -MOST_CONTRAST to MOST_CONTRAST: what differs from its surroundings."""
        away = images - self.blur @ images @ self.blur.T
        usual = (self.blur @ away.square().mean(dim=1, keepdim=True) @ self.blur.T).sqrt()
        return (away / (usual + LEAST_CONTRAST)).clamp(-MOST_CONTRAST, MOST_CONTRAST)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, T, UNTRAINED_SIZE): of the image, then of its contrast."""
        # one pass over both: the exporter folds only weights that it meets once
        views = torch.cat([images, self.contrast(images)])
        ((patches, prefix),) = self.encoder.forward_intermediates(
            self.shrink @ views @ self.shrink.T,
            indices=[UNTRAINED_TAP],
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=True,
        )
        tokens = side_by_side(self.spread @ patches, prefix)
        count = images.shape[0]  # len() would fix the batch of an export
        return torch.cat([tokens[:count], tokens[count:]], dim=-1)


class ReadOut(nn.Module):
    """What ships of two encoders: the taps of the trained one, then the untrained one's of two views."""

    def __init__(self, encoder: nn.Module, untrained: Untrained) -> None:
        super().__init__()
        self.encoder, self.untrained = encoder, untrained

    def blocks(self) -> list[tuple[int, Any]]:
        """The blocks of both encoders, timm's own class, each with its number in its encoder."""
        encoders: tuple[Any, ...] = (self.encoder, self.untrained.encoder)
        return [numbered for encoder in encoders for numbered in enumerate(encoder.blocks)]

    def unit_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> patch tokens (B, T, EMBEDDING_SIZE), scaled as `HilumNet.unit_features` are."""
        return torch.cat([read_out(self.encoder, images), self.untrained(images)], dim=-1) / TOKEN_SCALE
