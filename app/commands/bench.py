"""Time the road from file to record on this machine, against the bare ONNX Runtime call in the same run."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
from pydicom.data import get_testdata_file

import vision_model
from app import wiring
from app.config import Settings, Storage, load
from app.diagnose import diagnose
from app.identity import LOCAL_USER
from app.receive import Received, receive
from app.results import Diagnosed
from vision_model.manifest import WEIGHTS_NAME, read_manifest
from vision_model.runtime import MODELS, OUTPUTS, SHIPPED

SAMPLE = "J2K_pixelrep_mismatch.dcm"  # a 512 x 512 head CT slice in JPEG 2000, inside the pydicom package
BATCHES = (1, 8)
SHOTS, CLASSES = 10, 8
STAGES = ("decode", "prepare", "inference", "record")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum bench`'s options."""
    parser.add_argument(
        "path", nargs="?", type=Path, help="one DICOM file (default: a CT slice of the pydicom package)"
    )
    parser.add_argument("--repeat", type=int, default=20, help="measured rounds, after one to warm up (default: 20)")
    parser.add_argument(
        "--few-shot", action="store_true", help="also time learning 8 classes from 10 images each (extra: adapt)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the median of each stage and the ratio of the whole to the bare call; keeps nothing."""
    path = args.path or Path(str(get_testdata_file(SAMPLE, download=False)))
    settings, rounds = load(args.config), max(1, args.repeat)
    with TemporaryDirectory(prefix="hilum-bench-") as folder:
        figures = measure(path, settings=_elsewhere(settings, Path(folder)), rounds=rounds)
    variants = compare_graphs(settings, rounds=rounds)
    if args.few_shot:
        figures["first_few_shot_s"], figures["few_shot_s"] = few_shot_seconds(settings)
    if args.json:
        print(json.dumps({**figures, "graphs": [asdict(v) for v in variants]}))
        return 0
    for stage in (*STAGES, "whole", "bare"):
        print(f"{stage:<10} {figures[f'{stage}_ms']:8.1f} ms")
    print(f"whole / bare ONNX Runtime call: {figures['whole_over_bare']:.2f}")
    print(f"\n{'graph':<12} {'batch':>5} {'ms/image':>9} {'CPU ms':>8} {'of fp32':>8} {'MB':>6}")
    for v in variants:
        print(
            f"{v.precision:<12} {v.batch:>5} {v.ms:9.1f} {v.processor_ms:8.1f} {v.of_fp32:8.2f} "
            f"{v.file_bytes / 1e6:6.1f}"
        )
    if args.few_shot:
        print(
            f"few-shot fit, {SHOTS} images x {CLASSES} classes, embedding included: {figures['few_shot_s']:.1f} s "
            f"({figures['first_few_shot_s']:.1f} s the first time, which imports scikit-learn)"
        )
    print(f"largest memory of this process: {getrusage(RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0


@dataclass(frozen=True, slots=True)
class Variant:
    """The bare call of one graph of the model; times are medians for one image."""

    precision: str
    batch: int
    ms: float
    processor_ms: float  # of all threads, which other programs disturb less
    of_fp32: float  # by processor time, against the model's graph that computes in fp32
    file_bytes: int  # the graph and the weights that it shares


def compare_graphs(settings: Settings, *, rounds: int) -> list[Variant]:
    """Every graph of the model that the provider runs, in turns so that all meet the same disturbance."""
    folder = settings.model.path or MODELS / SHIPPED
    manifest = read_manifest(folder)
    chosen = [manifest.graph(provider=settings.model.provider).precision, *(g.precision for g in manifest.more_graphs)]
    models = {
        precision: vision_model.load(
            folder,
            provider=settings.model.provider,
            precision=precision,
            threads=settings.model.threads,
            engine_cache=settings.model.engine_cache,
        )
        for precision in dict.fromkeys(chosen)
    }
    shared = (folder / WEIGHTS_NAME).stat().st_size if manifest.weights_sha256 else 0
    size, variants = manifest.input.size, []
    for batch in BATCHES:
        tensor = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
        times: dict[str, list[tuple[float, float]]] = {precision: [] for precision in models}
        for _ in range(rounds + 1):
            for precision, model in models.items():
                started, worked = perf_counter(), process_time()
                model.run(tensor, OUTPUTS)
                times[precision].append((perf_counter() - started, process_time() - worked))
        wall = {p: median(t[0] for t in taken[1:]) * 1000 / batch for p, taken in times.items()}
        work = {p: median(t[1] for t in taken[1:]) * 1000 / batch for p, taken in times.items()}
        fp32 = next((work[p] for p in work if p != "int8"), max(work.values()))
        for precision in models:
            own = folder / manifest.graph(provider=settings.model.provider, precision=precision).file
            variants.append(
                Variant(
                    precision=precision,
                    batch=batch,
                    ms=wall[precision],
                    processor_ms=work[precision],
                    of_fp32=work[precision] / fp32,
                    file_bytes=own.stat().st_size + shared,
                )
            )
    return variants


def few_shot_seconds(settings: Settings) -> list[float]:
    """Time by the clock of two fits of `FewShotClassifier`, each on images of its own. Raises ExtraMissing."""
    from vision_model.adapt import FewShotClassifier

    model = vision_model.load(settings.model.path, provider=settings.model.provider, warm_up=1)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), SHOTS)
    seconds = []
    for _ in range(2):
        images = [rng.normal(20 * label, 10, (256, 256)).clip(0, 255).astype(np.uint8) for label in labels]
        started = perf_counter()
        FewShotClassifier(model).fit(images, labels, groups=np.arange(len(labels)))
        seconds.append(perf_counter() - started)
    return seconds


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
