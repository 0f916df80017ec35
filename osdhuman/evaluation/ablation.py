"""Tables 3 and 4 with one command: train a model for each row, then measure them all.

    training/<row>/       a run folder of scripts/train.py, which continues after a stop
    ...                   the rest as in osdhuman.evaluation.run

A row that cannot be trained (its weights are missing, say) stays empty, with the reason, and stops no other.
"""

from pathlib import Path

from osdhuman.config import dump_config, parse_config
from osdhuman.evaluation.config import AblationConfig, EvalConfig, TrainedRow
from osdhuman.evaluation.run import FAULTS, Failures, run
from osdhuman.recipes import find_recipe, load_training
from osdhuman.train.config import TrainConfig


class Stopped(ValueError):
    """A training was asked to stop by SIGTERM; the same command continues it."""


def run_ablation(config: AblationConfig) -> tuple[EvalConfig, Failures]:
    """Train, then evaluate. Returns the evaluation's settings, and what failed by row, with the reason."""
    trainings = {name: training_of(config, name) for name in config.rows}  # all mistakes before hours of training
    evaluation_of(config, trainings, {})
    failures = {name: reason for name in trainings if (reason := _train(config, name, trainings[name]))}
    evaluation = evaluation_of(config, trainings, failures)
    return evaluation, failures | run(evaluation)


def output_of(config: AblationConfig) -> Path:
    """The folder of an ablation, which is its evaluation's."""
    return Path(config.eval.get("output", EvalConfig.model_fields["output"].default))


def training_of(config: AblationConfig, name: str) -> TrainConfig:
    """The settings of one row's training: its file, the ablation's overrides, then its own."""
    row = config.rows[name]
    own = [f"run={output_of(config) / 'training' / name}"]
    own += [f"data.paths={config.data}"] if config.data else []
    return load_training(row.config, [*config.overrides, *row.overrides, *own])


def evaluation_of(config: AblationConfig, trainings: dict[str, TrainConfig], failures: Failures) -> EvalConfig:
    """The evaluation: one method for each row, restored by the model that its training left; a failed one by none."""
    methods = {name: _method(config, name, trainings[name], failures.get(name)) for name in config.rows}
    return parse_config(EvalConfig, {**config.eval, "methods": methods}, "the ablation's eval")


def _method(config: AblationConfig, name: str, training: TrainConfig, failure: str | None) -> dict:
    row, prompt = config.rows[name], training.model.prompt
    method = {
        "title": row.title,
        "paper": row.paper,
        "tiny": config.tiny,
        "group": "",
        "prompt_from": prompt.source if row.stand_in or prompt.kind != "null" else None,
        "note": " ".join(filter(None, [row.note, failure])),
    }
    if failure is None:
        method |= {"restorer": "osdhuman", "settings": {"model": str(training.run / "model"), **config.settings}}
    return method


def _train(config: AblationConfig, name: str, training: TrainConfig) -> str | None:
    """Train one row unless it is trained; returns why it could not be."""
    try:
        training = _with_stand_in(config.rows[name], training)
        if _finished(training):
            return None
        from osdhuman.train.loop import train

        result = train(training, find_recipe(training.recipe))
    except FAULTS as error:
        return f"not trained: {error}"
    if not result.finished:
        raise Stopped(f"row {name} was stopped at step {result.step}; the same command continues from {result.folder}")
    return None


def _with_stand_in(row: TrainedRow, training: TrainConfig) -> TrainConfig:
    if row.stand_in is None:
        return training
    from osdhuman.tiny.stand_in import with_dape_stand_in

    return with_dape_stand_in(training)


def _finished(training: TrainConfig) -> bool:
    """Whether the model was written by a training with these very settings."""
    settings = training.run / "config.yaml"
    written = (training.run / "model" / "config.json").is_file() and settings.is_file()
    return written and settings.read_text(encoding="utf-8") == dump_config(training)
