"""Where a run computes: one CPU, one GPU, or one process of many under torchrun."""

import os
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Place:
    """This process's device and its place among all that train together."""

    device: torch.device
    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; a processor without them imitates it, slower than fp32."""
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported()
        return supported
    return any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def in_bf16(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """A context for forward passes: bf16 where it is wanted and the device computes it, else fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and computes_bf16(device))


def find_place() -> Place:
    """The GPU if there is one, else the CPU; torchrun's environment says whether others train along.

    A process group that this starts stays open until the process ends.
    """
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:
        return Place(device, rank=0, world=1)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    return Place(device, rank=distributed.get_rank(), world=distributed.get_world_size())
