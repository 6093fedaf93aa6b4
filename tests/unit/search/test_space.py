"""Search spaces: drawn by Optuna itself, and refused before any trial where they do not fit the run."""

from typing import Any

import optuna
import pytest

from raystill.config.digest import canonical_json
from raystill.config.errors import UserError
from raystill.flow.importance import GridTimes
from raystill.flow.stein import SteinTimes
from raystill.methods.rayflow import RayFlow
from raystill.recipes import nano, nano_sweep
from raystill.recipes.resolve import resolve
from raystill.search.space import Choice, ConditionalSpace, Range, Space, check_space

TIMES = "method.times"
CONDITIONAL: Space = (
    Choice(path=TIMES, values=("UniformTimes", "SteinTimes")),
    Range(path=f"{TIMES}.components", low=1, high=6, when={TIMES: ("SteinTimes",)}),
)


def sampled(space: Space, count: int = 60) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    drawn: list[dict[str, Any]] = []

    settings = ConditionalSpace(space, nano.open_ended())

    def measured(trial: optuna.Trial) -> float:
        drawn.append(settings(trial))
        return 0.0

    study.optimize(measured, n_trials=count)
    return drawn


def test_a_setting_is_drawn_where_the_choices_that_it_needs_are_made() -> None:
    for config in sampled(CONDITIONAL):
        assert (f"{TIMES}.components" in config) == (config[TIMES] == "SteinTimes")
        if f"{TIMES}.components" in config:
            assert isinstance(config[f"{TIMES}.components"], int)
            assert 1 <= config[f"{TIMES}.components"] <= 6


def test_settings_that_are_drawn_again_have_another_seed() -> None:
    space: Space = (Choice(path="method.objective.target", values=("data", "velocity")),)
    found = sampled(space, 10)
    assert len({canonical_json(config) for config in found}) == 10
    assert sum("training.seed" not in config for config in found) == 2


def test_settings_that_train_the_same_have_another_seed_too() -> None:
    space: Space = (Choice(path="sampling.jump", values=("ode", "anchored")),)
    found = sampled(space, 6)
    assert sum("training.seed" not in config for config in found) == 1
    assert len({config.get("training.seed") for config in found}) == 6


def test_the_shipped_space_has_every_kind_and_makes_runs_that_pass_their_checks() -> None:
    search = nano_sweep.run()
    search.check()
    configs = sampled(search.space)
    kinds = {config[TIMES] for config in configs}
    assert {"SteinTimes", "GridTimes", "UniformTimes"} <= kinds
    searched = {path for config in configs for path in config}
    for name in ("delta", "bandwidth", "learning_rate", "components"):
        assert f"{TIMES}.{name}" in searched
    assert {"method.path.sigma", "method.objective.target"} <= searched
    for config in configs:
        run = search.run_of(config)
        run.check()
        assert isinstance(run.method, RayFlow)
        if config[TIMES] == "SteinTimes":
            assert isinstance(run.method.times, SteinTimes)
            assert run.method.times.delta == config[f"{TIMES}.delta"]
        if config[TIMES] == "GridTimes":
            assert isinstance(run.method.times, GridTimes)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ((), "the search space is empty"),
        ((Range(path="method.path.sigmma", low=0.0, high=0.5),), "no setting 'method.path.sigmma'.*method.path.sigma"),
        ((Range(path="method.path.sigma", low=0.0, high=1.5),), r"sigma is 1\.5"),
        ((Choice(path=TIMES, values=("UniformTimes", "SpiralTimes")),), "method.times: found 'SpiralTimes'"),
        ((CONDITIONAL[0], Range(path=f"{TIMES}.delta", low=0.1, high=0.5)), "no setting 'method.times.delta'"),
        (
            (Choice(path="targets.estimator.solver_steps", values=(8, 16)),),
            "targets.estimator.solver_steps, which all trials share",
        ),
        ((Range(path="training.steps", low=50, high=100),), "training.steps, which all trials share"),
        ((Choice(path="cluster.worker.cpus", values=(1.0, 2.0)),), "cluster.worker.cpus, which all trials share"),
        ((CONDITIONAL[0], CONDITIONAL[0]), "method.times twice"),
        (
            (CONDITIONAL[0], Range(path=f"{TIMES}.delta", low=0.1, high=0.5, when={TIMES: ("GridTimes",)})),
            "when method.times is 'GridTimes', which the space does not offer",
        ),
    ],
)
def test_spaces_that_do_not_fit_are_refused(space: Space, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_space(space, nano.open_ended())


@pytest.mark.parametrize(
    ("recipe", "domain", "message"),
    [
        ("lcm_nano", Choice(path="method.intervals", values=(50, 24)), "24, which does not divide the teacher's 1000"),
        (
            "dmd2_nano",
            Choice(path="method.features", values=(("mid_block",), ("attic",))),
            "method.features names attic",
        ),
    ],
)
def test_spaces_that_the_teacher_does_not_allow_are_refused(recipe: str, domain: Choice, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_space((domain,), resolve(recipe))


def test_a_range_runs_upwards() -> None:
    with pytest.raises(UserError, match=r"range of a is 2 to 1; write a lower and a higher"):
        Range(path="a", low=2, high=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials is 0; write 1 or more"),
        ({"trials": 1, "first": ({"optimizer.learning_rate": 1e-3},) * 2}, "trials is 1; write 2 or more"),
        ({"student_steps": ()}, "student_steps is \\(\\) and base"),
        ({"student_steps": (3,)}, r"is \(3,\) and base.evaluation.student_steps \(1, 2, 4, 8\)"),
        ({"rungs": (30, 70)}, "every rung is 2 times the one before"),
        ({"rungs": (60, 120)}, "below base.training.steps, 120"),
        ({"base.cluster.workers": 2}, "a trial is one process"),
    ],
)
def test_sweeps_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    from raystill.config.overrides import override

    with pytest.raises(UserError, match=message):
        override(nano_sweep.run(), changes).check()
