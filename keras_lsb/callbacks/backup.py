"""Backups of a training that survive whatever interrupts it, also with several workers."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._checks import whole
from keras_lsb._types import Model
from keras_lsb.distribute.agreement import from_all_workers
from keras_lsb.distribute.nodes import local_nodes, node_count, read_nodes, write_nodes
from keras_lsb.distribute.reduction import strategy_of, worker_index

FORMAT = 1
_RECORD = "backup.json"
_STOCK = ("training_metadata.json", "latest.weights.h5", "checkpoint")  # of the callbacks of Keras 3 and tf_keras


class BackupAndRestore(_keras.Callback):
    """Keeps the state of the last finished epoch, and lets `fit` go on from there when it is started again.

    A backup holds weights, moving statistics, optimizer and schedule, with the state of AutoWU and of the noise scale:
    a run that was interrupted ends as if it had not been, provided that its data come in the same order. It is written
    when the next epoch begins, after all callbacks have ended the last one, beside the previous backup, which is
    removed when the new one is complete: a full disk or a killed process costs no more than an epoch.

    Of a decentralized training it also holds what each node has for itself, and needs as many nodes to go on.

    With several workers `folder` is on a file system that all of them see. All write, as TensorFlow requires of what is
    kept per replica; only what the first one has written is kept, and all read it.

    Args:
        folder: folder for this run alone, created if there is none.
        epochs_per_backup: epochs between backups.
        delete_checkpoint: whether the backup is removed at the end of the training; if not, that end is kept as well.

    Raises:
        ValueError: when training begins, if the backup is damaged, of another version of this package, of stock Keras'
            callback, of another model or optimizer, or not seen by all workers. Files are left as they are.
        OSError: when a backup cannot be written; the message says what is kept.
    """

    def __init__(self, folder: str | Path, *, epochs_per_backup: int = 1, delete_checkpoint: bool = True):
        super().__init__()
        if not str(folder):
            raise ValueError(f"`folder` must name a folder. Received: folder={folder!r}")
        self.folder = Path(folder)
        self.epochs_per_backup = whole("epochs_per_backup", epochs_per_backup, 1)
        self.delete_checkpoint = bool(delete_checkpoint)
        self._finished = self._kept = 0  # epochs

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not self.model.built:
            raise ValueError(
                "`BackupAndRestore` needs a model that is built before `fit`: give it an Input, or call it on a batch."
            )
        record = self._record()
        self._require_one_backup(record)
        self._finished = self._kept = 0 if record is None else record["epoch"]
        if record is not None:
            self._restore(record)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._finished >= self._kept + self.epochs_per_backup:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._finished = epoch + 1

    def on_train_end(self, logs: dict | None = None) -> None:
        _keras.begin_at(self.model, None)
        if not self.delete_checkpoint:
            if self._finished > self._kept:
                self._save()
        elif self._is_first_worker():
            for path in (self.folder / _RECORD, *self._files_of_epochs()):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                self.folder.rmdir()

    def _is_first_worker(self) -> bool:
        return worker_index(strategy_of(self.model)) == 0

    def _files_of_epochs(self) -> list[Path]:
        return sorted([*self.folder.glob("epoch-*.weights.h5"), *self.folder.glob("epoch-*.node-*.npz")])

    def _record(self) -> dict | None:
        """What is known of the last backup, None if there is none."""
        path = self.folder / _RECORD
        if not path.exists():
            found = [name for name in _STOCK if (self.folder / name).exists()]
            if found:
                raise ValueError(
                    f"`folder` holds {found[0]!r}, a backup that keras.callbacks.BackupAndRestore has made. Use that "
                    f"callback to go on from it, or another folder to begin anew. Received: folder='{self.folder}'"
                )
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version = record["format"]
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(f"{_RECORD} cannot be read") from error
        if version != FORMAT:
            raise ValueError(
                f"The backup in '{self.folder}' has format {version!r} of keras_lsb {record.get('keras_lsb')!r}, this "
                f"version reads format {FORMAT}. Go on with that version, or begin anew in another folder. Nothing has "
                "been changed."
            )
        return record

    def _require_one_backup(self, record: dict | None) -> None:
        seen = from_all_workers(strategy_of(self.model), record and record["sha256"])
        for worker, checksum in enumerate(seen):
            if checksum != seen[0]:
                raise ValueError(
                    f"Worker {worker} does not see the backup that worker 0 sees in folder='{self.folder}': put it on "
                    "a file system that all workers share."
                )

    def _restore(self, record: dict) -> None:
        path, nodes = self.folder / record["weights"], record.get("nodes", [])
        self._require_as_many_nodes(path, len(nodes))
        paths = {node: self._node_file(record["epoch"], node) for node in local_nodes(self.model)}
        self._require_undamaged(path, record["sha256"])
        for node, own in paths.items():
            self._require_undamaged(own, nodes[node])
        _keras.build_optimizer(self.model)
        _require_same_variables(self.folder, record["variables"], _variables(self.model))
        self.model.load_weights(path)
        write_nodes(self.model, {node: _arrays(own) for node, own in paths.items()})
        if record["learning_rate"] is not None:  # which tf_keras leaves out of weights files
            _keras.set_learning_rate(self.model.optimizer, record["learning_rate"])
        _keras.begin_at(self.model, record["epoch"])

    def _require_as_many_nodes(self, path: Path, saved: int) -> None:
        present = node_count(self.model)
        if saved != present:
            raise ValueError(
                f"The backup in folder='{self.folder}' is of {saved or 'no'} nodes, this training has "
                f"{present or 'none'}. Use as many, or go on from their average: "
                f"`model.load_weights({str(path)!r})` before `fit`, with another folder for backups. Nothing has been "
                "changed."
            )

    def _require_undamaged(self, path: Path, checksum: str) -> None:
        if not path.exists():
            raise self._damaged(f"{path.name} is missing")
        if _checksum(path) != checksum:
            raise self._damaged(f"{path.name} is not what was written")

    def _node_file(self, epoch: int, node: int) -> Path:
        return self.folder / f"epoch-{epoch}.node-{node}.npz"

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"The backup in folder='{self.folder}' is damaged: {what}. Nothing has been changed. Restore the folder, "
            "or begin anew in another one."
        )

    def _save(self) -> None:
        _keras.synchronize(self.model)
        nodes = self._keep_nodes()
        if self._is_first_worker():
            self._keep(nodes)
        else:
            with tempfile.TemporaryDirectory() as place:
                self.model.save_weights(Path(place, "unused.weights.h5"))
        self._kept = self._finished

    def _keep_nodes(self) -> list[str]:
        """Writes what the nodes in this process have for themselves; the checksums of all nodes' files, in order."""
        if not node_count(self.model):
            return []
        found, problem = [], None  # [node, checksum] of each
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for node, values in read_nodes(self.model).items():
                path = self._node_file(self._finished, node)
                with path.open("wb") as file:
                    np.savez(file, *values)
                    os.fsync(file.fileno())
                found.append([node, _checksum(path)])
        except OSError as error:
            problem = str(error)
        everyone = from_all_workers(strategy_of(self.model), [found, problem])
        for worker, (_, problem) in enumerate(everyone):
            if problem is not None:
                for node in local_nodes(self.model):
                    self._node_file(self._finished, node).unlink(missing_ok=True)
                raise self._not_written(f"worker {worker}: {problem}")
        return [checksum for _, checksum in sorted(pair for found, _ in everyone for pair in found)]

    def _keep(self, nodes: list[str]) -> None:
        """Writes the backup of the last finished epoch, and then removes the one before."""
        older, optimizer = self._files_of_epochs(), self.model.optimizer
        name = f"epoch-{self._finished}.weights.h5"
        partial = self.folder / f"partial-{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _require_room(partial, _keras.state_bytes(self.model))
            self.model.save_weights(partial)
            record = {
                "format": FORMAT,
                "keras_lsb": _keras.package_version(),
                "epoch": self._finished,
                "weights": name,
                "learning_rate": None if _keras.has_schedule(optimizer) else _keras.learning_rate(optimizer),
                "sha256": _checksum(partial),
                "variables": _variables(self.model),
                "nodes": nodes,
            }
            _put(partial, self.folder / name)
            text = self.folder / f"partial-{_RECORD}"
            text.write_text(json.dumps(record, indent=1), encoding="utf-8")
            _put(text, self.folder / _RECORD)
        except (OSError, RuntimeError) as error:  # HDF5 raises either
            for path in self.folder.glob("partial-*"):
                path.unlink()
            raise self._not_written(error) from error
        for path in older:
            if not path.name.startswith(f"epoch-{self._finished}."):
                path.unlink()

    def _not_written(self, reason: Any) -> OSError:
        kept = f"The backup of epoch {self._kept} is still there" if self._kept else "There is none from before"
        return OSError(
            f"The backup of epoch {self._finished} could not be written to folder='{self.folder}': {reason}. "
            f"{kept}. Make room and start again."
        )


def _require_room(path: Path, size: int) -> None:
    """An OSError where `path` cannot grow to `size` bytes: HDF5 ends the process when it finds no room to close."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
    finally:
        path.unlink(missing_ok=True)


def _arrays(path: Path) -> list:
    with np.load(path) as file:
        return [file[f"arr_{index}"] for index in range(len(file.files))]


def _put(partial: Path, path: Path) -> None:
    """Gives a file its final name once its content is on the disk."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _variables(model: Model) -> list:
    """[name, shape, type] of everything that a backup holds."""
    variables = [*model.weights, *model.optimizer.variables]
    return [[variable.name, list(variable.shape), _keras.dtype_name(variable)] for variable in variables]


def _require_same_variables(folder: Path, saved: list, present: list) -> None:
    """Names the first variable that differs: Keras would load what fits, and only warn of the rest."""
    if len(saved) != len(present):
        what = f"It has {len(saved)} variables, the model and its optimizer have {len(present)}"
    else:
        pairs = zip(saved, present, strict=True)  # names are left out: Keras counts layers anew in each process
        what = next((f"It has {old}, the model {new}" for old, new in pairs if list(old[1:]) != list(new[1:])), None)
    if what:
        raise ValueError(
            f"The backup in folder='{folder}' is of another model or optimizer. {what}. Use those of the backup, or "
            "begin anew in another folder. Nothing has been changed."
        )
