"""The pipeline of a camera that looks at paper forms: one record for each sheet."""

from __future__ import annotations

from gateway.analyse import workorder
from gateway.clock import Clock
from gateway.config import PipelineTable
from gateway.contract import Frame, Inference
from gateway.forms import Template, as_media
from gateway.pipeline import Answer, CameraPipeline, Done, Engine, Notify


class FormPipeline(CameraPipeline):
    """Reads each picture as one form; what lies still before the camera is recorded once."""

    def __init__(
        self, table: PipelineTable, template: Template, engine: Engine, clock: Clock, done: Done, notify: Notify
    ) -> None:
        super().__init__(table, engine, clock, done, notify)
        self._template, self._form = template, as_media(template)
        self._sheets = workorder.Sheets()

    def _media(self, frame: Frame) -> str:
        return frame.media + self._form

    def _judged(self, answer: Answer, frame: Frame) -> Inference | None:
        judged = workorder.judge(self._template, answer.result)
        if not self._sheets.is_new(judged):
            return None
        return self._inference(answer, judged, frame.stamp, frame.seq, None)
