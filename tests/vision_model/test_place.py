"""bf16 is computed where there are instructions for it, and only there."""

import pytest
import torch

from vision_model.pretrain.place import in_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "wanted", "expected"),
    [
        ({"amx_bf16": True, "avx2": True}, True, torch.bfloat16),
        ({"amx_bf16": True}, False, torch.float32),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_vnni": True}, True, torch.float32),
    ],
)
def test_bf16_needs_a_wish_and_a_processor_that_has_it(
    capabilities: dict[str, bool], wanted: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with in_bf16(CPU, wanted=wanted):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
