"""Runs one cell: loads its model and text, runs it, writes its record. The same under every
executor.
"""

from __future__ import annotations

import ctypes
import gc
import math
import shutil
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from titer.assets.manifest import manifest
from titer.assets.models import LoadedModel, load_model
from titer.assets.saving import save_model, weights_digest
from titer.data.bundle import ModelBundle
from titer.data.examples import Example, digest_of
from titer.data.pools import Pools
from titer.data.wording import PLAIN
from titer.engine.checkpoint import EVERY_S, Rolling
from titer.engine.prober import BoundMeasure
from titer.engine.reward import reward_of
from titer.engine.run_cell import CellResult, Progress, StartReadings, Stopped, run_cell
from titer.engine.work import CellWork
from titer.errors import RunError, StorageError, TiterError
from titer.judges.cache import JudgementCache
from titer.measures.registry import resolve_measure
from titer.methods.method import Models
from titer.methods.registry import resolve
from titer.records.files import storage_error
from titer.records.record import Artifact, CellRecord, StartFacts
from titer.records.store import RunStore
from titer.runners.broker import Broker
from titer.study.cell import CONTROL_MODEL, Cell, CellMeasure, CellMethod, PartUse, Planned, Start
from titer.study.plugins import code_digest
from titer.study.reference import ModelRef
from titer.study.spec import Runtime


class CellRunner:
    """Runs cells one after the other on one device.

    checkpoint_every_s: least seconds between two rolling checkpoints.
    """

    def __init__(
        self,
        store: RunStore,
        pools: Pools,
        runtime: Runtime,
        device: torch.device,
        *,
        keep_transcripts: bool = False,
        checkpoint_every_s: float = EVERY_S,
    ) -> None:
        self.store, self.pools, self.runtime, self.device = store, pools, runtime, device
        self.keep_transcripts = keep_transcripts
        self.checkpoint_every_s = checkpoint_every_s
        self.broker = Broker(store, device)
        self.judgements = JudgementCache(store.judgements)
        self._at_start: dict[Start, StartReadings] = {}

    def perform(self, planned: Planned, progress: Progress | None = None) -> CellRecord:
        """Run the cell and write its record (last, atomically). Raises RunError naming the cell if
        it fails.
        """
        rolling = None
        if planned.cell.steps:
            rolling = Rolling(self.store.work / planned.digest, every_s=self.checkpoint_every_s)
        try:
            result = self.run(planned, progress, rolling)
            self._refuse_changes()
            if result.transcripts:
                rows = [
                    {"step": s, "label": k, **t}
                    for (s, k), ts in result.transcripts.items()
                    for t in ts
                ]
                self.store.write_transcripts(planned.digest, rows)
            self.store.write_record(result.record)
            if rolling:  # only now: a record that could not be written must not cost the work
                rolling.delete()
            return result.record
        except (TiterError, Stopped):
            raise
        except OSError as error:
            raise storage_error(error, self.store.root) from error
        # A plug-in may raise anything, including SystemExit; other cells must still finish.
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            traceback.clear_frames(error.__traceback__)  # they hold the model and its gradients
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            role = planned.roles[0]
            raise RunError(
                f"a cell failed ({cause}; {Path(place.filename).name}:{place.lineno})",
                field="cell",
                value=f"{planned.digest} ({role.purpose} {role.candidate})",
                expected="to finish",
                remedy="remove the cause and give the same command again; finished cells are kept",
            ) from error
        finally:
            result = None  # type: ignore[assignment]
            self.broker.give_back()
            give_back_memory()

    def run(
        self, planned: Planned, progress: Progress | None = None, rolling: Rolling | None = None
    ) -> CellResult:
        """Run the cell without writing its record: the final model is in the result."""
        work = self.work(planned)
        return run_cell(
            work,
            rolling=rolling,
            progress=progress,
            artifact=lambda made: self._keep(made, planned.digest),
            keep_transcripts=self.keep_transcripts,
            at_start=self._at_start.setdefault(planned.start, {}),
            judgements=self.judgements,
        )

    def _refuse_changes(self) -> None:
        """Raises RunError if the cell changed what other cells read too."""
        if found := self.broker.changed():
            raise RunError(
                f"the cell changed {' and '.join(found)}, which other cells share",
                field="method",
                value=", ".join(found),
                expected="changes to the model it was given, or to copies: "
                "`copy.deepcopy(bundle.model)`, `bundle.having(tokenizer=...)`, or another wording",
            )

    # -- what a cell needs ----------------------------------------------------------------------

    def work(self, planned: Planned) -> CellWork:
        """The cell with its model, text, further models and measures in hand."""
        cell = planned.cell
        loaded = self.broker.copy(planned.start, cell.model)
        bundle = self._bundle(loaded, cell)
        reward = reward_of(self._bound(cell.reward), self.judgements) if cell.reward else None
        return CellWork(
            cell=cell,
            bundle=bundle,
            method=_method(cell.method),
            texts=self._drawn(cell.texts, cell.seed),
            models=Models({n: partial(self._frozen, n, planned) for n in planned.models}),
            measures=[self._bound(m) for m in cell.measures],
            host=_method(cell.host.method) if cell.host else None,
            host_texts=self._drawn(cell.host.texts, cell.seed) if cell.host else {},
            reward=reward,
            start=self._start_facts(loaded, planned),
        )

    def _bundle(self, loaded: LoadedModel, cell: Cell) -> ModelBundle:
        return ModelBundle(
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            device=self.device,
            precision=cell.precision,
            max_length=cell.max_length,
            eval_batch=self.runtime.eval_batch,
        )

    def _frozen(self, name: str, planned: Planned) -> ModelBundle:
        return self._bundle(self._read_only(name, planned), planned.cell)

    def _read_only(self, name: str, planned: Planned) -> LoadedModel:
        return self.broker.frozen(planned.models[name], planned.cell.models[name].model)

    def _drawn(self, uses: Mapping[str, PartUse], seed: int) -> dict[str, tuple[Example, ...]]:
        """Every slot's examples for one seed."""
        return {
            slot: self.pools.draw(use.part, count=use.examples, seed=seed, domains=use.domains)
            for slot, use in uses.items()
        }

    def _bound(self, spec: CellMeasure) -> BoundMeasure:
        measure = _as_planned(resolve_measure(spec.name, spec.settings), spec)
        if spec.text is None:
            examples = measure.own_items() or ()
            items = f"{digest_of(examples)}:{len(examples)}"
        else:
            part = self.pools.part(spec.text.part, spec.text.domains)
            examples = part[: spec.text.examples]
            # Which items were read, by content: readings of two cells are paired, or shared, only
            # if these match.
            items = f"{spec.text.content}:{len(examples)}"
        return BoundMeasure(spec=spec, measure=measure, examples=examples, items=items)

    def _start_facts(self, loaded: LoadedModel, planned: Planned) -> StartFacts:
        distance, compared = None, planned.cell.method is None and CONTROL_MODEL in planned.models
        if compared:
            control = self._read_only(CONTROL_MODEL, planned).model
            distance = relative_distance(loaded.model, control)
        return StartFacts(
            weights=loaded.provenance["sha256"],
            parameters=int(loaded.provenance["parameters"]),
            neutralised=loaded.neutralised,
            compared=compared,
            distance=distance,
        )

    def _keep(self, made: ModelBundle, digest: str) -> Artifact:
        directory = self.store.models / digest
        shutil.rmtree(directory, ignore_errors=True)
        model = whole(made)
        save_safely(model, made.tokenizer, directory)
        artifact = Artifact(
            sha256=weights_digest(model),
            bytes=sum(f.stat().st_size for f in directory.iterdir()),
            files=manifest(directory),
        )
        del model
        _check_loads(directory, artifact.sha256)
        return artifact


def _check_loads(directory: Path, sha256: str) -> None:
    """Raises RunError if what was kept is not, once loaded, the model that was made: later cells
    would fail, or judge another one.
    """
    try:
        found = load_model(ModelRef(source="path", name=str(directory))).provenance["sha256"]
        problem = "" if found == sha256 else "the loaded weights differ from those that were made"
    except TiterError as error:
        problem = error.problem
    if problem:
        shutil.rmtree(directory, ignore_errors=True)
        raise RunError(
            f"the model this defense made cannot be kept: {problem}",
            field="defense",
            value=directory.name,
            expected="an ordinary model of its architecture: no parameters or modules added",
        )


def _method(spec: CellMethod | None) -> Any:
    return _as_planned(resolve(spec.kind, spec.name, spec.settings), spec) if spec else None


def _as_planned(found: Any, spec: CellMethod | CellMeasure) -> Any:
    """A method or measure, if its code is the one the cell was planned with. A plug-in file may be
    edited while a run goes on, and its results would then bear the address of the old code."""
    if (found.version, code_digest(type(found))) != (spec.version, spec.code):
        raise RunError(
            f"the code of {spec.name} has changed since the cell was planned",
            field="plugins",
            value=spec.name,
            expected=f"version {spec.version} {spec.code}".rstrip(),
            remedy="give the same command again: cells that the change affects are planned again",
        )
    return found


def relative_distance(model: Any, control: Any) -> float | None:
    """‖w − w_control‖ / ‖w_control‖ over all parameters; None if names or shapes differ."""
    ours, theirs = dict(model.named_parameters()), dict(control.named_parameters())
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        return None
    with torch.no_grad():
        apart = math.fsum(float((ours[n] - theirs[n]).double().square().sum()) for n in ours)
        size = math.fsum(float(p.double().square().sum()) for p in theirs.values())
    return math.sqrt(apart / size) if size else None


def give_back_memory() -> None:
    """Return freed memory to the system. Otherwise glibc keeps it, and a worker stays as large as
    its largest cell.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def whole(made: ModelBundle) -> Any:
    """The model as it is saved: an ordinary one in fp32, adapters merged into its weights.

    Raises RunError if it is asked in words of its own: they are no weights, and an attacker need
    not use them.
    """
    if made.wording != PLAIN:
        raise RunError(
            "a model cannot be kept with a wording of its own (system turn, template, wrapper or "
            "soft prompt)",
            field="wording",
            value=made.wording.to_json(),
            expected="weights alone",
        )
    model = made.model
    if not hasattr(model, "merge_and_unload"):
        return model.float()
    if hasattr(model.get_base_model(), "merge_and_unload"):
        raise RunError(
            "a model wrapped in adapters twice cannot be kept",
            field="adapters",
            value=type(model).__name__,
            expected="one set of adapters; merge the first before adding the second",
        )
    return model.merge_and_unload().float()


def save_safely(model: Any, tokenizer: Any, directory: Path) -> None:
    """`save_model`, raising StorageError for a full disk or a directory without write
    permission.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, tokenizer, directory)
    except OSError as error:
        raise storage_error(error, directory) from error
    except Exception as error:  # safetensors reports I/O trouble with an exception of its own
        if "No space" in str(error) or "os error" in str(error):
            raise StorageError(
                "the weights could not be written",
                field="run directory",
                value=str(directory),
                expected="space on the disk",
                remedy="free space and give the same command again",
            ) from error
        raise
