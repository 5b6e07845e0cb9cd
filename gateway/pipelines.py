"""Makes the pipelines of a config, with what feeds them and what looks closer at their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gateway.clock import Clock
from gateway.config import Config, NodeSource, PipelineTable
from gateway.errors import ConfigError
from gateway.pipeline import CameraPipeline, Done, Engine, Looked, Notify, Pipeline, RegionPipeline, SensorPipeline

if TYPE_CHECKING:  # what a bundle says is looked at only where a pipeline has one
    from gateway.infer.manifest import Manifest


class Pipelines:
    """All pipelines of a gateway.

    Attributes:
        by_stream: sensor pipelines by stream.
        by_source: camera pipelines by source; of a camera on a node by `<source>/<camera>`.
        all: every one, in the order of the config; running: those with a task of their own.

    Raises:
        ConfigError: a model does not take what its pipeline gives, or a parent gives no regions.
        ModelError: a bundle cannot be read.
    """

    def __init__(
        self,
        config: Config,
        engines: Mapping[str, Engine],
        clock: Clock,
        done: Done,
        looked: Looked,
        notify: Callable[[str], Notify],
    ) -> None:
        self._config = config
        self._manifests: dict[str, Manifest] = {}
        self.by_stream: dict[str, list[SensorPipeline]] = {}
        self.by_source: dict[str, list[CameraPipeline]] = {}
        self.all: list[Pipeline] = []
        parents: dict[str, CameraPipeline | RegionPipeline] = {}
        for table in config.pipeline:
            engine, tell = engines[table.model], notify(table.name)
            if table.stream and (length := self._length(table)):
                sensor = SensorPipeline(table, length, engine, clock, done, tell)
                self.by_stream.setdefault(sensor.stream, []).append(sensor)
                self.all.append(sensor)
            elif table.after:
                self._check_child(table)
                closer = RegionPipeline(table, engine, clock, done, looked, tell)
                parents[table.name] = closer
                self.all.append(closer)
            else:
                parents[table.name] = camera = self._camera(table, engine, clock, done, tell)
                self.by_source.setdefault(camera.of, []).append(camera)
                self.all.append(camera)
        for table in config.pipeline:
            if table.after:
                child = parents[table.name]
                assert isinstance(child, RegionPipeline)  # it was made so above
                parents[table.after].children.append(child)
        self.running = [pipeline for pipeline in self.all if not isinstance(pipeline, RegionPipeline)]

    def _camera(self, table: PipelineTable, engine: Engine, clock: Clock, done: Done, tell: Notify) -> CameraPipeline:
        if not table.form:
            return CameraPipeline(table, engine, clock, done, tell)
        from gateway import forms  # few gateways read them
        from gateway.form_pipeline import FormPipeline
        from gateway.infer.manifest import Ctc

        if not isinstance(self._manifest(table.model).post[-1], Ctc):
            raise ConfigError(
                f"pipeline '{table.name}': model '{table.model}' reads no text, a form needs one that does",
                hint="name one whose last post step is 'ctc'",
            )
        return FormPipeline(table, forms.load(self._config.path(table.form)), engine, clock, done, tell)

    def _manifest(self, model: str) -> Manifest:
        if model not in self._manifests:
            from gateway.infer.bundle import read_manifest

            table = next(m for m in self._config.model if m.name == model)
            self._manifests[model] = read_manifest(self._config.path(table.bundle))
        return self._manifests[model]

    def _length(self, table: PipelineTable) -> int:
        """Readings a window; 0: the model takes pictures, so the stream is to be a camera of the node.

        What a node has the config cannot know: should the stream turn out to be readings, an event tells.
        """
        from gateway.infer.manifest import Window

        takes = self._manifest(table.model).input
        if isinstance(takes, Window):
            if table.max_fps:
                raise ConfigError(
                    f"pipeline '{table.name}': max_fps, but readings are never left out", hint="delete the line"
                )
            return table.window or takes.length
        source = next(source for source in self._config.source if source.name == table.source)
        if table.window or table.hop or not isinstance(source, NodeSource):
            gives = "'window' and 'hop' are for" if table.window or table.hop else f"'{table.source}' gives"
            raise ConfigError(
                f"pipeline '{table.name}': model '{table.model}' takes pictures, {gives} readings",
                hint="name a camera as source, or a model for windows",
            )
        return 0

    def _check_child(self, table: PipelineTable) -> None:
        from gateway.infer.manifest import Gfl, Picture, Ssd, Yolo

        if not isinstance(self._manifest(table.model).input, Picture):
            raise ConfigError(
                f"pipeline '{table.name}': model '{table.model}' takes readings, it would be given regions of pictures",
                hint="name a model for pictures",
            )
        parent = next(p for p in self._config.pipeline if p.name == table.after)
        detector = self._manifest(parent.model)
        if not isinstance(detector.input, Picture):
            raise ConfigError(
                f"pipeline '{table.name}': '{parent.name}' takes readings, which have no regions",
                hint="name a camera's pipeline in `after`",
            )
        if unknown := [label for label in table.labels if label not in detector.labels]:
            raise ConfigError(
                f"pipeline '{table.name}': model '{parent.model}' of '{parent.name}' knows no '{unknown[0]}'",
                hint=f"its labels are: {', '.join(detector.labels)[:300]}",
            )
        if not any(isinstance(step, Ssd | Gfl | Yolo) for step in detector.post):
            raise ConfigError(
                f"pipeline '{table.name}': model '{parent.model}' of '{parent.name}' detects nothing to look closer at",
                hint="name a pipeline with a detector in `after`",
            )
