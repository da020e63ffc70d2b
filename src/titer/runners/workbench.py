"""Doing one cell: bring its model and text together, drive it, put the result down. The same in every kind of runner."""

from __future__ import annotations

import copy
import ctypes
import gc
import shutil
import traceback
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from titer.assets.models import LoadedModel, load_model, save_model, weights_digest
from titer.data.examples import digest_of
from titer.data.pools import Pools
from titer.data.subject import Subject
from titer.engine.checkpoint import EVERY_S, Rolling
from titer.engine.drive import Driven, Eye, Progress, Stopped, drive
from titer.errors import AssetError, RunError, StorageError, TiterError
from titer.measures.registry import resolve_measure
from titer.methods.method import Method, MethodData
from titer.methods.registry import resolve
from titer.records.model import Artifact, CellRecord
from titer.records.store import RunStore, storage_error
from titer.study.cell import Cell, CellMeasure, PartUse, Planned
from titer.study.reference import ModelRef
from titer.study.spec import Runtime

PRISTINE_BYTES = 5e8
"""Memory that copies of starting models may take (on the host). A larger model is loaded anew for every cell: seconds for a quarter of the memory."""


class Workbench:
    """Keeps the last few pristine models in memory, because many cells start from the same one.

    checkpoint_every_s: least seconds between two rolling checkpoints.
    """

    def __init__(
        self,
        store: RunStore,
        pools: Pools,
        runtime: Runtime,
        *,
        keep_transcripts: bool = False,
        checkpoint_every_s: float = EVERY_S,
    ) -> None:
        self.store, self.pools, self.runtime = store, pools, runtime
        self.keep_transcripts = keep_transcripts
        self.checkpoint_every_s = checkpoint_every_s
        self.device = pick_device(runtime.device)
        self._models: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self._at_start: dict[str, dict] = {}

    def perform(self, planned: Planned, progress: Progress | None = None) -> CellRecord:
        """Run the cell and write its record (last, atomically). Raises RunError naming the cell if it fails."""
        rolling = None
        if planned.cell.steps:
            rolling = Rolling(self.store.work / planned.digest, every_s=self.checkpoint_every_s)
        try:
            driven = self.drive(planned, progress, rolling)
            if driven.transcripts:
                rows = [{"step": s, "label": k, **t} for (s, k), ts in driven.transcripts.items() for t in ts]
                self.store.write_transcripts(planned.digest, rows)
            self.store.write_record(driven.record)
            if rolling:  # only now: a record that could not be written must not cost the work
                rolling.delete()
            record = driven.record
            del driven
            give_back_memory()
            return record
        except (TiterError, Stopped):
            raise
        except OSError as error:
            raise storage_error(error, self.store.root) from error
        except Exception as error:  # a plug-in may raise anything; the other cells shall still be finished
            place = traceback.extract_tb(error.__traceback__)[-1]
            traceback.clear_frames(error.__traceback__)  # they hold the model, its gradients and the optimizer
            give_back_memory()
            raise RunError(
                f"a cell failed ({type(error).__name__}: {' '.join(str(error).split())[:300]}; "
                f"{Path(place.filename).name}:{place.lineno})",
                field="cell", value=f"{planned.digest} ({planned.roles[0].purpose} {planned.roles[0].candidate})",
                expected="to finish", remedy="finished cells are kept; mend the cause and give the same command again",
            ) from error  # fmt: skip

    def drive(self, planned: Planned, progress: Progress | None = None, rolling: Rolling | None = None) -> Driven:
        """Run the cell without writing its record: the final model is in the result."""
        cell = planned.cell
        subject = self.subject(planned)
        method = resolve(cell.method.kind, cell.method.name, cell.method.settings) if cell.method else None
        data = MethodData(harmful=self._draw(cell.harmful, cell), harmless=self._draw(cell.harmless, cell))
        eyes = [self._eye(m, method) for m in cell.measures]
        return drive(
            cell, method, subject, data, eyes, rolling=rolling, progress=progress,
            artifact=lambda model: self._keep(model, subject.tokenizer, planned.digest),
            keep_transcripts=self.keep_transcripts,
            at_start=self._at_start.setdefault(_start(cell), {}) if getattr(method, "starts_as_parent", False) else None,
        )  # fmt: skip

    def _draw(self, use: PartUse | None, cell: Cell) -> tuple:
        if use is None:
            return ()
        return self.pools.draw(use.part, count=use.examples, seed=cell.seed, domains=use.domains)

    def _eye(self, spec: CellMeasure, method: Method | None) -> Eye:
        examples = self.pools.part(spec.text.part, spec.text.domains)[: spec.text.examples]
        wrap = getattr(method, "wrap_eval", None)
        # Which items were read, by content: readings of two cells are paired, or shared, only if these match.
        items = f"{spec.text.content}:{len(examples)}"
        if wrap and spec.label in ("harm", "confirm", "second"):
            given, examples = examples, tuple(wrap(e) for e in examples)
            if examples != given:
                items += f":{digest_of(examples)}"
        return Eye(spec=spec, measure=resolve_measure(spec.name, spec.settings), examples=examples, items=items)

    def subject(self, planned: Planned) -> Subject:
        """A fresh copy of the model a cell starts from, on the device."""
        cell = planned.cell
        model, tokenizer = self._pristine(planned, _start(cell))
        return Subject(model=model, tokenizer=tokenizer, device=self.device, precision=cell.precision,
                       max_length=cell.max_length, eval_batch=self.runtime.eval_batch)  # fmt: skip

    def _pristine(self, planned: Planned, key: str) -> tuple[Any, Any]:
        """The starting model, on the device, to be changed at will; and its tokenizer."""
        if key not in self._models:
            model, tokenizer = self._load(planned)
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            while self._models and size * (len(self._models) + 1) > PRISTINE_BYTES:
                self._models.popitem(last=False)
            if size > PRISTINE_BYTES:
                return model.to(self.device), tokenizer
            self._models[key] = model, tokenizer
        self._models.move_to_end(key)
        model, tokenizer = self._models[key]
        return copy.deepcopy(model).to(self.device), tokenizer

    def _load(self, planned: Planned) -> tuple[Any, Any]:
        parent = planned.cell.parent
        loaded = load_model(ModelRef.model_validate_json(planned.model_name)) if parent is None else self._made(parent)
        loaded.model.eval().requires_grad_(False)
        return loaded.model, loaded.tokenizer

    def _made(self, parent: str) -> LoadedModel:
        """The model a building cell of this run made, if it is still what its record says."""
        made, record = self.store.models / parent, self.store.record(parent)
        if record is None or record.artifact is None or not made.exists():
            raise AssetError("the model a cell starts from is missing", field="parent", value=parent,
                             expected="weights made by an earlier cell of this run",
                             remedy="give the `titer run` command again; they are made anew")  # fmt: skip
        loaded = load_model(ModelRef(source="path", name=str(made)))
        if (found := loaded.provenance["sha256"]) != record.artifact.sha256:
            raise AssetError("the weights made by an earlier cell have changed", field=str(made), value=found,
                             expected=record.artifact.sha256,
                             remedy=f"delete {made.name} under models/ and give the `titer run` command again")  # fmt: skip
        return loaded

    def _keep(self, model: Any, tokenizer: Any, digest: str) -> Artifact:
        directory = self.store.models / digest
        shutil.rmtree(directory, ignore_errors=True)
        model = whole(model)
        save_safely(model, tokenizer, directory)
        size = sum(f.stat().st_size for f in directory.iterdir())
        return Artifact(sha256=weights_digest(model), bytes=size)


def give_back_memory() -> None:
    """Return freed memory to the system. glibc keeps it otherwise, and a worker would hold the largest cell it ever did."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library manages without
        ctypes.CDLL(None).malloc_trim(0)


def _start(cell: Cell) -> str:
    """What the cell starts from: a building cell's digest, or the root model's identity."""
    return cell.parent or cell.model


def whole(model: Any) -> Any:
    """The model with its adapters, if it has any, merged into its weights: what is saved must load as an ordinary model."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save_safely(model: Any, tokenizer: Any, directory: Path) -> None:
    """`save_model`, with a full disk or a forbidden directory told readably."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, tokenizer, directory)
    except OSError as error:
        raise storage_error(error, directory) from error
    except Exception as error:  # safetensors reports I/O trouble with an exception of its own
        if "No space" in str(error) or "os error" in str(error):
            raise StorageError("the weights could not be written", field="run directory", value=str(directory),
                               expected="space on the disk", remedy="free space and give the same command again") from error  # fmt: skip
        raise


def pick_device(wanted: str) -> torch.device:
    """`auto`: the first CUDA device if there is one, else the CPU. Raises RunError if cuda is asked for in vain."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RunError("no CUDA device", field="runtime.device", value=wanted, expected="a visible CUDA device",
                       remedy="use device: auto or cpu")  # fmt: skip
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
