"""The data of a run as a stream of optimizer updates, from the run's position on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import NamedTuple, TypeVar, cast

from flowloom.data.loader import SampleBatch
from flowloom.engine.build import Components
from flowloom.engine.collate import prepare, updates_of
from flowloom.engine.controls import Controls
from flowloom.engine.objective import LatentBatch
from flowloom.engine.position import reached_limits
from flowloom.engine.skipped_rows import SkippedRows
from flowloom.errors import DataError, SourceError

T = TypeVar("T")


class UpdateBatch(NamedTuple):
    """The samples of one optimizer update."""

    batches: tuple[LatentBatch, ...]
    """This rank's samples, one batch for each bucket."""
    number: int
    """Of the `num_updates` updates that its loaded batches make."""
    num_updates: int
    num_batches: int
    """Loaded batches that it shares with the other updates."""
    num_samples: int
    """On all ranks."""
    has_weight: bool
    """False if the loss weight of all its samples is 0 on all ranks: no step is made, because momentum and
    weight decay alone would move the weights."""
    caption: str | None = None
    """The first caption of its loaded batches."""
    wait_s: float = 0.0
    """Time spent waiting for data."""


class Updates:
    """Loads batches, joins those that are trained together, encodes them and cuts them into updates.

    The next update follows from the position, so the caller moves it after each.
    """

    def __init__(self, components: Components, controls: Controls, skipped: SkippedRows):
        self._components, self._controls, self._skipped = components, controls, skipped
        self._state = components.state
        self.has_failed_everywhere = False
        """True if a store failed, and all ranks know it: they are at the same position."""

    def __iter__(self) -> Iterator[UpdateBatch]:
        """Updates until the run is over.

        Raises:
            SourceError: a store failed this rank or another one.
            DataError: an epoch made no step.
        """
        packs = _packs(self._loaded_batches())
        while True:
            started = time.perf_counter()
            pack = self._together(lambda: next(packs, None))
            if pack is None:
                return
            wait_s = time.perf_counter() - started
            self._skipped.add(chain.from_iterable(loaded.skipped for loaded in pack))
            for update in self._updates_of(pack):
                yield update._replace(wait_s=wait_s)
                wait_s = 0.0

    def _updates_of(self, pack: list[SampleBatch]) -> Iterator[UpdateBatch]:
        """The updates of a pack from the position on; one if no sample of the pack has any weight."""
        weights, counts = self._totals(pack)
        if not any(weights):
            yield UpdateBatch((), 0, 1, len(pack), 0, has_weight=False)
            return
        first = self._state.position.update
        with self._controls.interruptible():
            encode = self._components.encoders.encode
            encoded = self._together(lambda: [encode(loaded) if loaded.samples else None for loaded in pack])
            batches = [
                prepare(self._state, loaded, encodings)
                for loaded, encodings in zip(pack, encoded, strict=True)
            ]
        caption = next((sample.caption for loaded in pack for sample in loaded.samples), None)
        pairs = zip(batches, pack, strict=True)
        cut = zip(*(updates_of(batch, loaded.update_sizes, first) for batch, loaded in pairs), strict=True)
        for number, parts in enumerate(cut, start=first):
            yield UpdateBatch(
                parts, number, len(weights), len(pack), counts[number], bool(weights[number]), caption
            )

    def _totals(self, pack: list[SampleBatch]) -> tuple[list[float], list[int]]:
        """Loss weight and number of the samples of each update, over all ranks; skipped rows are reported."""
        count = len(pack[0].update_sizes)
        weights, counts = [0.0] * count, [0] * count
        for loaded in pack:
            samples = iter(loaded.samples)
            for number, size in enumerate(loaded.update_sizes):
                weights[number] += sum(sample.loss_weight for sample in islice(samples, size))
                counts[number] += size
        *totals, is_skipped = self._state.ranks.total(*weights, *counts, bool(self._skipped))
        if is_skipped:
            self._skipped.report()
        return totals[:count], [int(total) for total in totals[count:]]

    def _loaded_batches(self) -> Iterator[SampleBatch]:
        """Batches from the position on, epoch after epoch, until the run is over."""
        position, config, loader = self._state.position, self._state.config, self._components.loader
        if position.step == 0 and position.epoch == 0 and position.batch == 0:
            position.batch = max(0, min(config.dataloader.offset, loader.num_batches(0) - 1))
        if self._controls.must_stop or reached_limits(config, position):
            return
        epoch, step_before = -1, -1
        for loaded in loader.endless(position.epoch, position.batch, self._controls.stops_waiting):
            if loaded.epoch != epoch:
                if position.step == step_before:
                    raise self._no_step(epoch)
                epoch, step_before = loaded.epoch, -1 if loaded.index else position.step
                self._components.encoders.begin_epoch()
            if loaded.epoch > position.epoch:
                # With fractional repeats, the epochs in between have no rows.
                position.epoch, position.batch = loaded.epoch, 0
                if self._controls.must_stop or reached_limits(config, position):
                    return
            yield loaded

    def _no_step(self, epoch: int) -> DataError:
        path = self._components.loader.dataset.path
        return DataError(
            f"{path}: epoch {epoch + 1} made no step, because every usable row has loss_weight 0. Set "
            "loss_weight above 0 for the rows, or the datasets, that you want to train."
        )

    def _together(self, work: Callable[[], T]) -> T:
        """The result of `work`; if a store fails any rank, all ranks raise.

        Raises:
            SourceError: a store failed this rank or another one.
        """
        try:
            result, failure = work(), None
        except SourceError as error:
            result, failure = None, error
        (num_failed,) = self._state.ranks.total(failure is not None)
        if num_failed:
            self.has_failed_everywhere = True
            raise failure or SourceError("A store failed another rank of this run; its log has the reason.")
        return cast("T", result)


def _packs(batches: Iterator[SampleBatch]) -> Iterator[list[SampleBatch]]:
    """Lists of batches that are trained in one update; an incomplete one at the end is left out."""
    pack: list[SampleBatch] = []
    for loaded in batches:
        pack.append(loaded)
        if not loaded.joins_next:
            yield pack
            pack = []
