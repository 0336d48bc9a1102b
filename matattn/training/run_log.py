"""The table of a run's metrics, epoch by epoch."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from matattn.files import write_text


class RunLog(L.Callback):
    """A table with the metrics of every epoch, at ``path``, and the progress of the run.

    ``show`` maps metrics to what is printed of them, for example ``{"val/loss": "val {:.3f} eV"}``,
    in a line for about every tenth of the run. A terminal has a progress bar instead. The rows and
    the training time are part of the checkpoint, so that a resumed run continues the same table.
    """

    def __init__(self, path: Path, show: Mapping[str, str]) -> None:
        self.path, self.show = path, show
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0

    @property
    def epochs(self) -> int:
        """Return the number of epochs that are finished."""
        return len(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the training time, for the checkpoint."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows and the training time of a checkpoint."""
        self.rows, self.seconds = list(state_dict["rows"]), state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._resumed_from = self.seconds
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a row to the table, and show its metrics."""
        self.seconds = self._resumed_from + time.perf_counter() - self._start
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch + 1
        self.rows = [row for row in self.rows if row["epoch"] < epoch]
        self.rows.append({"epoch": epoch, "seconds": round(self.seconds, 2), **metrics})
        if not trainer.is_global_zero:
            return
        write_text(self.path, self._csv())
        epochs = trainer.max_epochs or 1
        tenth = epoch == epochs or epoch == 1 or epoch % max(1, epochs // 10) == 0
        if trainer.progress_bar_callback is None and tenth:
            shown = "  ".join(
                text.format(metrics[name]) for name, text in self.show.items() if name in metrics
            )
            print(f"epoch {epoch}/{epochs}  {self.seconds:.0f} s  {shown}", file=sys.stderr)

    def _csv(self) -> str:
        names = dict.fromkeys(name for row in self.rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()
