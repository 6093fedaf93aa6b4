"""One suite over every engine, in one process; tests/cluster/test_zero.py has the same over several ranks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.engine.local import LocalEngine
from raystill.engine.protocol import Engine, NonFiniteError, Optimizer
from raystill.engine.replicated import ReplicatedEngine
from raystill.engine.zero import ZeroEngine, agree

Build = Callable[[nn.Module, Optimizer], Engine]

ENGINES: dict[str, Build] = {
    "local": LocalEngine,
    "replicated": ReplicatedEngine,
    **{f"zero-{stage}": partial(ZeroEngine, stage=stage) for stage in range(4)},
}
OPTIMIZER = Optimizer(clip_norm=0.5, weight_decay=0.01)


pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(params=list(ENGINES))
def build(request: pytest.FixtureRequest) -> Build:
    return ENGINES[request.param]


def network() -> nn.Sequential:
    """Three layers of odd and distinct sizes, the first one frozen."""
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 6), nn.SiLU(), nn.Linear(6, 3))
    layers[0].requires_grad_(False)
    return layers


def batch(step: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(step)
    return torch.randn(8, 5, generator=rng), torch.randn(8, 3, generator=rng)


def loss(engine: Engine, step: int) -> Tensor:
    inputs, targets = batch(step)
    found: Tensor = (engine.module(inputs) - targets).square().mean()
    return found


def train(engine: Engine, steps: range) -> list[float]:
    norms = []
    for step in steps:
        engine.backward(loss(engine, step))
        norms.append(float(engine.step(0.01)))
    return norms


def values(engine: Engine) -> dict[str, Tensor]:
    with engine.trainable() as tensors:
        return {name: tensor.clone() for name, tensor in tensors.items()}


def test_norm_is_that_before_clipping_and_the_moment_that_after(build: Build, tmp_path: Path) -> None:
    line = nn.Linear(2, 1, bias=False)
    engine = build(line, Optimizer(clip_norm=0.5, beta_1=0.75))
    engine.backward(engine.module(torch.tensor([[3.0, 4.0]])).sum())
    assert float(engine.step(0.01)) == pytest.approx(5.0)
    engine.save(tmp_path)
    moment = load_file(tmp_path / "state.safetensors")["exp_avg/weight"]
    torch.testing.assert_close(moment, 0.25 * 0.1 * torch.tensor([[3.0, 4.0]]))


def test_first_update_of_adam_has_the_size_of_the_rate(build: Build) -> None:
    line = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(line.weight)
    engine = build(line, Optimizer())
    engine.backward(engine.module(torch.tensor([[3.0, -4.0]])).sum())
    engine.step(0.125)
    torch.testing.assert_close(values(engine)["weight"], torch.tensor([[-0.125, 0.125]]))


def test_equals_plain_torch(build: Build) -> None:
    module = network()
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    plain = torch.optim.AdamW(learned, lr=0.01, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(5):
        inputs, targets = batch(step)
        plain.zero_grad()
        (module(inputs) - targets).square().mean().backward()
        nn.utils.clip_grad_norm_(learned, 0.5)
        plain.step()
    engine = build(network(), OPTIMIZER)
    train(engine, range(5))
    for name, tensor in values(engine).items():
        torch.testing.assert_close(tensor, module.get_parameter(name).data)


def test_trainable_gives_what_requires_a_gradient(build: Build) -> None:
    module = network()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    found = values(build(module, OPTIMIZER))
    assert list(found) == ["2.weight", "2.bias", "4.weight", "4.bias"]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_backward_accumulates(build: Build) -> None:
    whole, halves = build(network(), OPTIMIZER), build(network(), OPTIMIZER)
    inputs, targets = batch(0)
    for _ in range(2):  # twice, to see that the gradients of the first update are gone
        whole.backward(loss(whole, 0))
        for part in (slice(0, 4), slice(4, 8)):
            halves.backward((halves.module(inputs[part]) - targets[part]).square().mean() / 2)
        assert float(halves.step(0.01)) == pytest.approx(float(whole.step(0.01)))
    for name, tensor in values(halves).items():
        torch.testing.assert_close(tensor, values(whole)[name])


def test_module_may_be_called_twice_in_a_loss(build: Build) -> None:
    engine, plain = build(network(), OPTIMIZER), LocalEngine(network(), OPTIMIZER)
    inputs, targets = batch(0)
    for one in (engine, plain):
        with torch.no_grad():
            one.module(inputs)
        one.backward((one.module(inputs) - targets).square().mean() + one.module(inputs[:3]).square().mean())
    assert float(engine.step(0.01)) == pytest.approx(float(plain.step(0.01)))
    for name, tensor in values(engine).items():
        torch.testing.assert_close(tensor, values(plain)[name])


SPOILS: list[Callable[[Tensor], Tensor]] = [lambda loss: loss * torch.inf, lambda loss: loss + (0.0 * loss).sqrt()]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("kind", [kind for kind in ENGINES if kind != "replicated"])
def test_non_finite_stops_before_the_update(kind: str, spoil: Callable[[Tensor], Tensor]) -> None:
    engine = ENGINES[kind](network(), OPTIMIZER)
    train(engine, range(2))
    before = values(engine)
    engine.backward(spoil(loss(engine, 2)))
    with pytest.raises(NonFiniteError, match="the update was not applied"):
        engine.step(0.01)
    for name, tensor in values(engine).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("spoil", SPOILS)
def test_no_state_is_saved_of_a_replicated_module_that_is_not_finite(
    spoil: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    engine = ReplicatedEngine(network(), OPTIMIZER)
    engine.backward(spoil(loss(engine, 0)))
    engine.step(0.01)
    train(engine, range(1, 2))
    with pytest.raises(NonFiniteError, match="since the last checkpoint"):
        engine.save(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_replicated_step_waits_for_no_device() -> None:
    engine = ReplicatedEngine(network().to("meta"), OPTIMIZER, "meta")  # a tensor there has no value to wait for
    inputs, targets = (part.to("meta") for part in batch(0))
    engine.backward((engine.module(inputs) - targets).square().mean())
    assert engine.step(0.01).is_meta
    with pytest.raises(RuntimeError, match="meta"):
        LocalEngine(network().to("meta"), OPTIMIZER, "meta").step(0.01)


@pytest.mark.parametrize("resumed", list(ENGINES))
@pytest.mark.parametrize("done", [0, 3])
def test_resumed_run_equals_an_uninterrupted_one(build: Build, resumed: str, done: int, tmp_path: Path) -> None:
    engine = build(network(), OPTIMIZER)
    train(engine, range(done))
    engine.save(tmp_path)
    norms = train(engine, range(done, 6))
    other = network()
    for parameter in other[2:].parameters():
        nn.init.ones_(parameter)  # so that what is not restored shows
    second = ENGINES[resumed](other, OPTIMIZER)
    second.load(tmp_path)
    assert train(second, range(done, 6)) == pytest.approx(norms, rel=1e-5)
    for name, tensor in values(second).items():
        torch.testing.assert_close(tensor, values(engine)[name])


def test_state_of_another_module_is_refused(build: Build, tmp_path: Path) -> None:
    build(network(), OPTIMIZER).save(tmp_path)
    with pytest.raises(UserError, match="holds 4 parameters, the module trains 2; first mismatch"):
        build(nn.Linear(5, 3), OPTIMIZER).load(tmp_path)


def test_state_of_another_shape_is_refused(build: Build, tmp_path: Path) -> None:
    build(nn.Linear(5, 3), OPTIMIZER).save(tmp_path)
    with pytest.raises(UserError, match=r"weight of shape \(3, 5\), the module trains \(4, 5\)"):
        build(nn.Linear(5, 4), OPTIMIZER).load(tmp_path)


def test_module_with_nothing_to_train_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="no parameter of the module requires a gradient"):
        build(network().requires_grad_(False), OPTIMIZER)


def test_bfloat16_forward_keeps_parameters_and_moments_in_float32(tmp_path: Path) -> None:
    for stage in range(4):
        engine = ZeroEngine(network(), OPTIMIZER, stage, precision="bfloat16")
        assert engine.module(batch(0)[0]).dtype == torch.bfloat16
        train(engine, range(2))
        engine.save(tmp_path)
        assert {tensor.dtype for tensor in load_file(tmp_path / "state.safetensors").values()} == {torch.float32}


def test_autocast_that_deepspeed_would_switch_off_is_refused() -> None:
    engine = ZeroEngine(network(), OPTIMIZER, 2)
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)  # the flag alone: there need not be a GPU
    try:
        with pytest.raises(UserError, match='precision="bfloat16"'):
            engine.module(batch(0)[0])
    finally:
        torch.set_autocast_enabled("cuda", before)


@pytest.mark.parametrize(("stage", "precision"), [(4, "float32"), (2, "float16")])
def test_unknown_settings_say_what_to_write(stage: int, precision: str) -> None:
    with pytest.raises(UserError, match="write"):
        ZeroEngine(network(), OPTIMIZER, stage, precision=precision)


def test_one_rank_agrees_with_itself() -> None:
    agree("5d41402abc4b2a76, 100 steps")
