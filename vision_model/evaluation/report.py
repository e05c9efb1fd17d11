"""Write what was measured: one JSON file with everything, tables, support lists, plots and a model card."""

import json
import logging
from pathlib import Path

from vision_model.data.tasks import curriculum
from vision_model.evaluation.card import card
from vision_model.evaluation.goals import goals
from vision_model.evaluation.plots import plots
from vision_model.evaluation.run import Measured
from vision_model.evaluation.tables import goals_table, tables
from vision_model.manifest import Manifest

__all__ = ["goals_table", "write_report"]

logger = logging.getLogger(__name__)

EVALUATION_NAME = "evaluation.json"
TABLES_NAME = "tables.md"
SUPPORTS_NAME = "support_lists.json"
CARD_NAME = "MODEL_CARD.md"


def write_report(measured: Measured, *, manifest: Manifest, out: Path, notes: str = "") -> None:
    """Write evaluation.json, tables.md, support_lists.json, MODEL_CARD.md and the plots into `out`.

    The figures are written first: a plot that cannot be drawn costs none of them.
    """
    out.mkdir(parents=True, exist_ok=True)
    measured.report["goals"] = goals(measured.report)
    _write(out / EVALUATION_NAME, json.dumps(measured.report, indent=1, ensure_ascii=False) + "\n")
    _write(out / SUPPORTS_NAME, json.dumps(measured.supports, ensure_ascii=False) + "\n")
    _write(out / TABLES_NAME, tables(measured.report))
    _write(out / CARD_NAME, card(manifest, measured.report, notes=notes))
    for path in plots(measured, manifest=manifest, what=curriculum(), out=out):
        logger.info("wrote %s", path.name)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    logger.info("wrote %s", path.name)
