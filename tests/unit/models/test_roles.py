"""Roles of one base: each is the network that it would be alone, whoever was called since."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny
from torch import Tensor, nn

from raystill.models.backbones.settings import Settings
from raystill.models.backbones.stable_diffusion_3 import StableDiffusion3
from raystill.models.roles import Role, copied, remembering, shared
from raystill.models.weights import ADAPTER, Lora, load_trained, prepare

LORA = Lora(rank=2, alpha=3.0, targets=StableDiffusion3.layers)
X = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
T = torch.tensor([700.0, 300.0])
CONDITION = {
    "prompt": torch.randn(2, 9, 96, generator=torch.Generator().manual_seed(2)),
    "pooled": torch.randn(2, 64, generator=torch.Generator().manual_seed(3)),
}


def base(dtype: torch.dtype = torch.float32) -> Any:
    return tiny("sd3").transformer.to(dtype)


def ask(network: nn.Module) -> Tensor:
    return StableDiffusion3(Settings(Path("of-a-test"))).call(network, X, T, CONDITION)


def moved(role: nn.Module, seed: int) -> None:
    """Give a role's LoRA an effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in role.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)


def two(*, checkpointing: Any = None) -> tuple[Any, dict[str, Role]]:
    network = base()
    if checkpointing is not None:
        network.enable_gradient_checkpointing(checkpointing(network))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        roles = shared(network, LORA, ("student", "fake"))
    for seed, role in enumerate(roles.values()):
        moved(role, seed)
    return network, roles


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def alone(role: Role) -> nn.Module:
    """A network of its own with a role's LoRA."""
    made: nn.Module = prepare(base(), LORA)
    load_trained(made, {name: p.data for name, p in role.named_parameters() if p.requires_grad})
    return made


def test_each_role_is_the_network_that_it_would_be_alone() -> None:
    network, roles = two()
    teacher, plain = Role(network, None), base()
    with torch.no_grad():
        expected = {name: ask(alone(role)) for name, role in roles.items()} | {"teacher": ask(plain)}
        for name in ("student", "teacher", "fake", "student", "fake", "teacher"):
            torch.testing.assert_close(ask({**roles, "teacher": teacher}[name]), expected[name], rtol=0, atol=0)
    assert float((expected["student"] - expected["fake"]).abs().max()) > 1e-3
    names = [n for n, p in roles["fake"].named_parameters() if p.requires_grad]
    assert names == [n for n, p in prepare(base(), LORA).named_parameters() if p.requires_grad]
    assert not [n for n, p in teacher.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("checkpointing", [None, remembering], ids=["plain", "checkpointed"])
def test_a_role_called_between_forward_and_backward_changes_no_gradient(checkpointing: Any) -> None:
    """With `set_adapter`, the student has none; with stock checkpointing, wrong ones, and neither is an error."""
    network, roles = two(checkpointing=checkpointing)
    expected = {}
    for name, role in roles.items():
        own = alone(role)
        ask(own).square().mean().backward()
        expected[name] = gradients(own)
    losses = {name: ask(role).square().mean() for name, role in roles.items()}
    with torch.no_grad():
        ask(Role(network, None))
    for name, role in roles.items():
        losses[name].backward()
        found = gradients(role)
        assert set(found) == set(expected[name])
        assert len(found) > 10
        for key, gradient in expected[name].items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-7)


def test_an_error_inside_a_call_leaves_the_other_roles_as_they_were() -> None:
    network, roles = two()
    with torch.no_grad():
        expected = ask(roles["student"])
        hook = network.transformer_blocks[0].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("ended")))
        with pytest.raises(KeyError, match="ended"):
            ask(roles["fake"])
        hook.remove()
        torch.testing.assert_close(ask(roles["student"]), expected, rtol=0, atol=0)


def test_a_copied_role_has_the_values_and_draws_no_random_number() -> None:
    _, roles = two()
    before = torch.get_rng_state()
    target = copied(roles["student"], LORA, "target")
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        torch.testing.assert_close(ask(target), ask(roles["student"]), rtol=0, atol=0)
        moved(target, 9)
        assert not torch.equal(ask(target), ask(roles["student"]))
    first = next(n for n, _ in target.named_parameters() if "lora_B" in n)
    assert target.get_parameter(first) is not roles["student"].get_parameter(first)
    assert f".{ADAPTER}." in first


def test_loras_on_a_bfloat16_base_are_float32_and_learn_under_autocast() -> None:
    roles = shared(base(torch.bfloat16), LORA, ("student", "fake"))
    for role in roles.values():
        dtypes = {parameter.requires_grad: parameter.dtype for _, parameter in role.named_parameters()}
        assert dtypes == {False: torch.bfloat16, True: torch.float32}
        moved(role, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ask(roles["student"]).float().square().mean()
    loss.backward()
    found = gradients(roles["student"])
    assert all(g.dtype is torch.float32 for g in found.values())
    exact = shared(base(), LORA, ("student",))["student"]
    load = {n: p.data for n, p in roles["student"].named_parameters() if p.requires_grad}
    load_trained(exact, load)
    ask(exact).square().mean().backward()
    expected = gradients(exact)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) < 0.1 * float(gradient.norm()) + 1e-6, name
