"""The vision model: load it, embed with it, predict with it."""

from vision_model.runtime import Model, load

__all__ = ["Model", "load"]
