"""Let torchvision import beside a CPU build of torch. Import this before timm.

torchvision's wheel registers kernels for operators whose schemas only a CUDA build of torch carries; timm, and so
training, needs torchvision for its Python parts alone. Training and tests only.
"""

import sys

import torch

LIBRARY: torch.library.Library | None = None  # kept, since its definitions go with it

try:
    import torchvision
except RuntimeError:
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
