"""Time the road from file to record on this machine, against the bare ONNX Runtime call in the same run."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from pydicom.data import get_testdata_file

from app import wiring
from app.config import Settings, Storage, load
from app.diagnose import diagnose
from app.identity import LOCAL_USER
from app.receive import Received, receive
from app.results import Diagnosed
from vision_model.runtime import OUTPUTS

SAMPLE = "J2K_pixelrep_mismatch.dcm"  # a 512 x 512 head CT slice in JPEG 2000, inside the pydicom package
STAGES = ("decode", "prepare", "inference", "record")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum bench`'s options."""
    parser.add_argument(
        "path", nargs="?", type=Path, help="one DICOM file (default: a CT slice of the pydicom package)"
    )
    parser.add_argument("--repeat", type=int, default=20, help="measured rounds, after one to warm up (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the median of each stage and the ratio of the whole to the bare call; keeps nothing."""
    path = args.path or Path(str(get_testdata_file(SAMPLE, download=False)))
    with TemporaryDirectory(prefix="hilum-bench-") as folder:
        figures = measure(path, settings=_elsewhere(load(args.config), Path(folder)), rounds=max(1, args.repeat))
    if args.json:
        print(json.dumps(figures))
        return 0
    for stage in (*STAGES, "whole", "bare"):
        print(f"{stage:<10} {figures[f'{stage}_ms']:8.1f} ms")
    print(f"whole / bare ONNX Runtime call: {figures['whole_over_bare']:.2f}")
    return 0


def measure(path: Path, *, settings: Settings, rounds: int) -> dict[str, float]:
    """Medians in ms over `rounds`, first frame only: the stages, their sum, and the bare call of the same graph."""
    with wiring.services(settings) as services:
        arrivals = receive(
            [path],
            spool=services.spool,
            sandbox=services.sandbox,
            sessions=services.sessions,
            limits=settings.reading.limits,
            scratch=services.scratch,
            actor=LOCAL_USER,
            now=services.now,
        )
        received = [arrival for arrival in arrivals if isinstance(arrival, Received)]
        size = services.model.manifest.input.size
        tensor = np.zeros((1, 3, size, size), np.float32)
        latencies: list[dict[str, float]] = []
        bare: list[float] = []
        for _ in range(rounds + 1):
            latencies += [_one(received, services=services)]
            started = perf_counter()
            services.model.run(tensor, OUTPUTS)
            bare.append((perf_counter() - started) * 1000)
    figures = {f"{stage}_ms": median(latency[stage] for latency in latencies[1:]) for stage in STAGES}
    figures["whole_ms"] = median(sum(latency.values()) for latency in latencies[1:])
    figures["bare_ms"] = median(bare[1:])
    figures["whole_over_bare"] = figures["whole_ms"] / figures["bare_ms"]
    return figures


def _one(received: Sequence[Received], *, services: wiring.Services) -> dict[str, float]:
    results = diagnose(
        received,
        model=services.model,
        sandbox=services.sandbox,
        sessions=services.sessions,
        actor=LOCAL_USER,
        now=services.now,
        batch_size=1,
        frames_per_series=1,
    )
    return next(dict(result.latency_ms) for result in results if isinstance(result, Diagnosed))


def _elsewhere(settings: Settings, folder: Path) -> Settings:
    """The same settings with a database and spool of their own."""
    storage = Storage(
        database_url=f"sqlite:///{folder / 'bench.db'}",
        spool=folder / "spool",
        checkpoint=folder / "checkpoint.json",
        keep_free_bytes=0,
    )
    return settings.model_copy(update={"storage": storage})
