"""The first pass: calibration tokens stream through the layers, and every unit is fitted where its layer is resident.

Where a method asks for gradients, the hidden states before each layer are kept in files and a backward sweep follows: the
layers come last to first, each run again from its own inputs. So all statistics cost one forward, or one forward with one
forward-and-backward.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from compress.checkpoint.disk import remove_tree
from compress.checkpoint.files import read_json, write_json
from compress.checkpoint.units import Artefact, read_unit, write_unit
from compress.fitting.units import Unit, layers_of
from compress.methods.base import Material, Need
from compress.numerics.statistics import Moments, Statistic
from compress.parallel.world import world
from compress.progress import Log, Progress, Tick
from compress.stream.heap import release_freed
from compress.stream.hidden import Boundaries, Hidden
from compress.stream.model import StreamedModel
from compress.stream.taps import Collector


@dataclass(frozen=True)
class Gradients:
    """Files of gradient moments that the first pass leaves for the second, by module and `layer.<index>`."""

    folder: Path
    source_hash: str

    def write(self, name: str, moments: Moments) -> None:
        """Keep the moments of `name`, atomically."""
        write_unit(self._file(name), Artefact(moments.tensors(), {}), self.source_hash)

    def read(self, name: str) -> Moments | None:
        """The moments of `name`; None where there are none of this source."""
        saved = read_unit(self._file(name), self.source_hash)
        return None if saved is None else Moments.from_tensors(saved.tensors)

    def has(self, name: str) -> bool:
        """Whether there are moments of `name`, of this source."""
        return read_unit(self._file(name), self.source_hash, only=()) is not None

    def _file(self, name: str) -> Path:
        # One file per source, so that the moments of another are never read.
        return self.folder / f"{name}.{self.source_hash[:12]}.safetensors"


@dataclass(frozen=True)
class SearchLog(Log):
    """Finished searches of a unit, one file per output: an interrupted fit goes on with the next output."""

    folder: Path
    module: str
    tick: Tick

    def read(self, key: str) -> Any:
        """What was kept under a key; None where nothing was."""
        return read_json(self.folder / f"{key}.json")

    def write(self, key: str, found: Any) -> None:
        """Keep a finished search, atomically."""
        write_json(self.folder / f"{key}.json", found)

    def tell(self, text: str) -> None:
        """Tell how far the search is, without moving the bar."""
        self.tick(f"{self.module}: {text}", 0)

    def clear(self) -> None:
        """Forget all of it: the unit is finished."""
        remove_tree(self.folder)


@dataclass(frozen=True)
class FirstPass:
    """Fits units into files under `work`; `source_hash` stands for the model, the calibration tokens and the seed."""

    model: StreamedModel
    work: Path
    source_hash: str
    seed: int
    keep_gradients: bool  # leave the gradient moments for a second pass
    _collected: dict[int, dict[str, Statistic]] = field(
        default_factory=dict
    )  # of units that span layers, until the last is seen

    @property
    def gradients(self) -> Gradients:
        """Where the gradient moments are kept for the second pass."""
        return Gradients(self.work / "gradient_moments", self.source_hash)

    def artefact(self, unit: Unit, only: Container[str] | None = None) -> Artefact | None:
        """The unit's file (`only` some of its tensors), or None where it is missing, damaged or of something else."""
        return read_unit(unit.file(self.work, self.source_hash), unit.fingerprint(self.source_hash), only)

    def run(self, units: Sequence[Unit], tokens: Tensor, progress: Progress) -> None:
        """Fit the units that have no valid file yet."""
        # Files that are there and valid are an earlier run's, and are not made again.
        missing = world().agreed(lambda: [at for at, unit in enumerate(units) if not self._finished(unit)])
        todo = [units[at] for at in missing]
        if not todo:
            return
        self._collected.clear()
        kinds = {need.statistic for unit in todo for need in self._needs(unit).values()}
        by_layer = {i: [unit for unit in todo if i in self._layers(unit)] for i in range(self.model.n_layers)}
        if not kinds:
            self._without_data(by_layer, progress("fit", len(todo)))
        elif "gradient" in kinds:
            self._both_ways(by_layer, tokens, len(todo), progress)
        else:
            self._forward(by_layer, tokens, len(todo), progress)

    def _without_data(self, by_layer: Mapping[int, Sequence[Unit]], tick: Tick) -> None:
        for index, units in by_layer.items():
            # Where nothing is measured, a unit over several layers is fitted at its last one.
            ready = [unit for unit in units if unit.group.layer == index]
            if ready:
                with self.model.resident(index) as layer:
                    self._share([(unit, {}) for unit in ready], layer, tick)

    def _forward(self, by_layer: Mapping[int, Sequence[Unit]], tokens: Tensor, units: int, progress: Progress) -> None:
        hidden = self.model.embed(tokens)
        # No unit needs what comes after the last layer that has one.
        last = max(index for index, found in by_layer.items() if found)
        tick = progress("calibrate and fit", (last + 1) * len(hidden.states) + units)
        for index in range(last + 1):
            with self.model.resident(index) as layer:
                collector = self._collector(by_layer[index], layer, index, hidden)
                hidden.advance(layer, index, self.model.architecture.layer(index), collector, tick)
                self._collect_and_fit(by_layer[index], collector, index, layer, tick)

    def _both_ways(self, by_layer: Mapping[int, Sequence[Unit]], tokens: Tensor, units: int, progress: Progress) -> None:
        hidden = self.model.embed(tokens)
        layers = range(self.model.n_layers)
        # Gradients come from the top, so the forward always goes all the way; only the way back may stop early.
        first = min(index for index, found in by_layer.items() if found)
        tick = progress("calibrate and fit", (2 * len(layers) - first) * len(hidden.states) + units)
        boundaries = Boundaries(self.work / "boundaries" / str(world().rank), hidden)
        for index in layers:
            boundaries.save(index)
            with self.model.resident(index) as layer:
                hidden.advance(layer, index, self.model.architecture.layer(index), tick=tick)
        gradients = self.model.gradients_at_top(hidden, tokens)
        for index in reversed(layers[first:]):
            # The states before this layer again, so that it can be run with gradients.
            boundaries.load(index)
            with self.model.resident(index) as layer:
                if self.keep_gradients:
                    self._keep_leaving(index, hidden, gradients)
                collector = self._collector(by_layer[index], layer, index, hidden)
                hidden.retreat(layer, index, gradients, collector, tick)
                self._collect_and_fit(by_layer[index], collector, index, layer, tick)
        world().meet()
        if world().first:  # with those that an earlier run left, of however many processes
            remove_tree(self.work / "boundaries")

    def _keep_leaving(self, index: int, hidden: Hidden, gradients: Sequence[Tensor]) -> None:
        """The moments of the gradient at a layer's output: the metric in which block refinement measures its error."""

        def of(positions: Sequence[int]) -> Moments:
            leaving = Moments(gradients[0].shape[-1])
            for position in positions:
                leaving.update(gradients[position].flatten(0, 1))
            return leaving

        leaving = hidden.summed(Moments, of)
        if world().first:
            self.gradients.write(f"layer.{index}", leaving)

    def _collector(self, units: Sequence[Unit], layer: nn.Module, index: int, hidden: Hidden) -> Collector:
        prefix = self.model.architecture.layer(index) + "."
        needs = [need for unit in units for need in self._needs(unit).values() if need.input_of.startswith(prefix)]
        own = world().owned(self.model.compute.lanes)
        return Collector(needs, layer, prefix, hidden.tokens, self.model.architecture, own)

    def _collect_and_fit(self, units: Sequence[Unit], collector: Collector, index: int, layer: nn.Module, tick: Tick) -> None:
        """Take what this layer gave, and fit the units that now have everything, the widest input first."""
        collector.close()
        release_freed()
        prefix = self.model.architecture.layer(index) + "."
        here = {id(u): [n for n in self._needs(u).values() if n.input_of.startswith(prefix)] for u in units}
        complete: list[tuple[Unit, dict[str, Statistic]]] = []
        # The widest input first: its statistics are the largest, and go before the others are fitted.
        for unit in sorted(units, key=lambda unit: -collector.size(here[id(unit)])):
            needs = self._needs(unit)
            collected = self._collected.pop(id(unit), {})
            collected |= {key: collector[need] for key, need in needs.items() if need.input_of.startswith(prefix)}
            if len(collected) == len(needs):
                complete.append((unit, collected))
            else:
                # The unit reaches into layers that are still to come: what this one gave waits for them.
                self._collected[id(unit)] = collected
        collector.values.clear()
        self._share(complete, layer, tick)

    def _share(self, complete: list[tuple[Unit, dict[str, Statistic]]], layer: nn.Module, tick: Tick) -> None:
        """Fit units of one resident layer, each in one of the processes. A statistic goes with its last reader."""
        mine, count = 0, len(complete)
        for number in world().share(count):
            # Those before it are others': what they read may go.
            for _ in range(number + 1 - (count - len(complete))):
                unit, statistics = complete.pop(0)
            self._fit(unit, statistics, layer, tick)
            del statistics
            # glibc would keep the freed blocks in its heap (`stream.heap`).
            release_freed()
            tick()
            mine += 1
        tick(done=count - mine)

    def _fit(self, unit: Unit, statistics: Mapping[str, Statistic], layer: nn.Module, tick: Tick) -> None:
        """Fit one unit and write its file; a unit over several layers also reads the others' weights."""
        weights: dict[str, Tensor] = {}
        for index in self._layers(unit):
            weights |= self.model.layer_weights(index)
        if self.keep_gradients:
            for key, need in self._needs(unit).items():
                if need.statistic == "gradient":
                    self.gradients.write(need.input_of, cast(Moments, statistics[key]))
        if self.artefact(unit, only=()) is not None:  # only the moments that a second pass reads were missing
            return
        started = time.perf_counter()
        log = SearchLog(self.work / "searches" / unit.group.name, unit.group.modules[-1], tick)
        material = Material(unit.group, self.model.architecture, weights, statistics, layer, self.seed, log)
        artefact = unit.method.fit(material)
        seconds = time.perf_counter() - started
        file = unit.file(self.work, self.source_hash)
        # The timing before the unit: whoever finds a unit file finds its timing beside it.
        write_json(file.with_suffix(".json"), {"seconds": round(seconds, 3)})
        write_unit(file, artefact, unit.fingerprint(self.source_hash))
        # The unit file holds it all now.
        log.clear()

    def _needs(self, unit: Unit) -> dict[str, Need]:
        return unit.method.needs(unit.group, self.model.architecture)

    def _layers(self, unit: Unit) -> list[int]:
        return layers_of(unit.group.modules, self.model.architecture) or [unit.group.layer]

    def _finished(self, unit: Unit) -> bool:
        """Whether the unit's file is there and valid, and with it what a second pass reads."""
        # None of its tensors: this only asks whether the file is whole and of this unit.
        if self.artefact(unit, only=()) is None:
            return False
        read = [need.input_of for need in self._needs(unit).values() if need.statistic == "gradient"]
        if not self.keep_gradients or not read:
            return True
        return all(self.gradients.has(name) for name in (*read, f"layer.{unit.group.layer}"))
