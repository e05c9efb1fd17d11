"""Learn a new question from a handful of labelled images: few-shot heads on the encoder's embeddings."""

from vision_model.adapt.classifier import FewShotClassifier
from vision_model.adapt.head import Head, load_head

__all__ = ["FewShotClassifier", "Head", "load_head"]
