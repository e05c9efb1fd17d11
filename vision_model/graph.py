"""Open a model's graph on the processor that was named, and run it."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vision_model.errors import GraphInvalid, ProviderUnavailable

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
INPUT = "images"
PRECISION_KEY = "precision"  # in the graph's own metadata, written by the export and by vision_model.quantise
LARGEST_BATCH = 64  # that a TensorRT engine is built for; larger batches are cut


class Graph:
    """One ONNX Runtime session. Safe to call from several threads, as the session is."""

    def __init__(
        self,
        source: Path | bytes,
        *,
        provider: str = "cpu",
        threads: int = 0,
        size: int | None = None,
        engine_cache: Path | None = None,
    ) -> None:
        """Start a session on `provider`: "cpu", "cuda" or "tensorrt"; it is used or refused, never replaced.

        `threads` of 0 are one for each core; an 8-bit graph takes as many images at a time. TensorRT needs `size`, the
        side of the images in pixels, and keeps what it built for this GPU in `engine_cache`. Raises GraphInvalid and
        ProviderUnavailable.
        """
        name = source.name if isinstance(source, Path) else "the graph"
        wanted = PROVIDERS.get(provider)
        if wanted is None:
            raise ProviderUnavailable(f"provider is {provider!r}; it is one of {', '.join(PROVIDERS)}")
        if wanted not in onnxruntime.get_available_providers():
            raise ProviderUnavailable(
                f"{wanted} is not in this build of ONNX Runtime; install the matching build or use cpu"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait sleep instead of spinning: beside other work on two cores that took 0.6 of the time
        # (deploy/README.md), and an idle service burns nothing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # a provider that fails to start is refused below with our words
        try:
            self._session = onnxruntime.InferenceSession(
                source, options, providers=provider_chain(provider, size=size, engine_cache=engine_cache)
            )
        except Exception as exc:  # ONNX Runtime raises a dozen unrelated types
            raise GraphInvalid(f"ONNX Runtime cannot load {name}: {exc}") from exc
        self.asked = provider
        self.provider: str = self._session.get_providers()[0]
        if self.provider != wanted:
            raise ProviderUnavailable(f"{wanted} could not start on this machine; check the driver or use cpu")
        self.outputs = frozenset(output.name for output in self._session.get_outputs())
        # "int8", "int8-stored" or "fp16-stored"; None for a graph that does not say
        self.precision: str | None = self._session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY)
        # An 8-bit graph scales a whole activation by its largest value. Were images run together, each would change the
        # others' answers (measured: by up to 0.42 in a logit); alone, an image has one answer.
        self._alone = self.precision == "int8"
        self._side_by_side = threads or os.cpu_count() or 1
        self._device = "cpu" if provider == "cpu" else "cuda"

    def run(self, tensors: NDArray[np.float32], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """(B, 3, S, S) -> the named outputs, each with B in front."""
        step = 1 if self._alone else len(tensors) if self._device == "cpu" else LARGEST_BATCH
        run = partial(self._run if self._device == "cpu" else self.run_bound, outputs=outputs)
        if len(tensors) <= step:
            return run(tensors)
        parts = [tensors[start : start + step] for start in range(0, len(tensors), step)]
        if self._alone:  # a thread with an image of its own waits for no other: .7 of the time on two cores
            with ThreadPoolExecutor(self._side_by_side) as threads:
                done = list(threads.map(run, parts))
        else:
            done = [run(part) for part in parts]
        return [np.concatenate(output) for output in zip(*done, strict=True)]

    def run_bound(self, tensors: NDArray[np.float32], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """The same through an IO binding: one copy to the device, and only the named outputs back."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(tensors, self._device, 0))
        for name in outputs:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]

    def warm_up(self, *, size: int, batch: int) -> None:
        """Run once what will be run later: a GPU chooses its kernels for a shape when it first meets it."""
        for count in sorted({1, batch} if self._device == "cuda" else {1}):
            self.run(np.zeros((count, 3, size, size), np.float32), sorted(self.outputs))

    def _run(self, tensors: NDArray[np.float32], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        results: list[NDArray[np.float32]] = self._session.run(list(outputs), {INPUT: tensors})
        return results


def provider_chain(provider: str, *, size: int | None, engine_cache: Path | None) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's list for one of PROVIDERS; TensorRT leaves what it does not know to CUDA.

    Raises ProviderUnavailable for TensorRT without `size` and `engine_cache`.
    """
    # Without TF32 a GPU gives the numbers of the CPU to about 1e-5: thresholds were chosen on those.
    cuda = (PROVIDERS["cuda"], {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    if provider == "cuda":
        return [cuda]
    if provider != "tensorrt":
        return [(PROVIDERS[provider], {})]
    if size is None or engine_cache is None:
        raise ProviderUnavailable("tensorrt needs a folder for its engines; set model.engine_cache")
    engine_cache.mkdir(parents=True, exist_ok=True)
    shapes = {"min": 1, "opt": 8, "max": LARGEST_BATCH}
    tensorrt = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engine_cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(engine_cache),
    } | {f"trt_profile_{name}_shapes": f"{INPUT}:{batch}x3x{size}x{size}" for name, batch in shapes.items()}
    return [(PROVIDERS["tensorrt"], tensorrt), cuda]
