"""Train the encoder and its heads from a recipe."""

from vision_model import torchvision_shim

__all__ = ["torchvision_shim"]
