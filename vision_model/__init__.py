"""The vision model: load it, embed with it, predict with it."""

import os

# ONNX Runtime's official builds since 1.29 report sessions and graph digests to their maker, and look for this once,
# when they are first imported; `disable_telemetry_events` comes too late. Nothing may leave this machine.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from vision_model.runtime import Model, load

__all__ = ["Model", "load"]
