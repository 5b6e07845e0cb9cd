"""Whether a bundle may take the place of another in the pipelines of a config."""

from __future__ import annotations

from gateway.config import ClassRule, Config, DetectionRule
from gateway.errors import ModelError
from gateway.infer.manifest import Gfl, Manifest, Picture, Ssd, Window, Yolo


def check_fit(config: Config, model: str, old: Manifest, new: Manifest) -> None:
    """Compare what goes in and what is expected to come out.

    Raises:
        ModelError: a pipeline or a rule would no longer work; the restart with another config can change those too.
    """
    why = _input(old.input, new.input)
    if not why and old.task != new.task:
        why = f"it is for '{new.task}', the present one for '{old.task}'"
    pipelines = {pipeline.name for pipeline in config.pipeline if pipeline.model == model}
    children = [child for child in config.pipeline if child.after in pipelines]
    if not why and children and not any(isinstance(step, Ssd | Gfl | Yolo) for step in new.post):
        why = f"it detects nothing for '{children[0].name}' to look closer at"
    wanted = {label: child.name for child in children for label in child.labels}
    for rule in config.rule:
        if isinstance(rule, ClassRule | DetectionRule) and rule.pipeline in pipelines:
            wanted |= dict.fromkeys(rule.labels, rule.name)
    missing = [label for label in wanted if label in old.labels and label not in new.labels]
    if not why and missing:
        why = f"it knows no '{missing[0]}', which '{wanted[missing[0]]}' asks for"
    if why:
        raise ModelError(
            f"bundle {new.name} {new.version} does not fit model '{model}': {why}",
            hint="name it as `bundle` in a config that fits it",
        )


def _input(old: Window | Picture, new: Window | Picture) -> str:
    if isinstance(old, Picture) or isinstance(new, Picture):
        kinds = {Window: "readings", Picture: "pictures"}
        return "" if type(old) is type(new) else f"it takes {kinds[type(new)]}, its pipelines give {kinds[type(old)]}"
    for what, has, gives in (
        ("windows of", new.length, old.length),
        ("Hz", new.rate_hz, old.rate_hz),
        ("channels", new.channels, old.channels),
    ):
        if has != gives:
            return f"{what} {has}, its pipelines give {gives}"
    return ""
