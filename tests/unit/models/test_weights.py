"""Adapters: the identity at first, trainable alone, and carried without loss."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from raystill.config.errors import UserError
from raystill.models.fresh import DenoiserShape
from raystill.models.weights import (
    Full,
    Lora,
    add_delta,
    delta,
    load_trained,
    lora_state,
    peft_config,
    prepare,
)


def unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return DenoiserShape(widths=(8, 16), groups=4, heads=2, text_width=6).unet(4, 8).eval()


def answer(network: UNet2DConditionModel) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    x, text = torch.randn(3, 4, 6, 8, generator=rng), torch.randn(3, 5, 6, generator=rng)
    with torch.no_grad():
        value: torch.Tensor = network(x, torch.tensor([0, 400, 999]), text).sample
    return value


def learned(network: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}


def moved(network: UNet2DConditionModel) -> UNet2DConditionModel:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return network


def test_a_fresh_adapter_is_the_identity_and_a_moved_one_is_not() -> None:
    adapted = prepare(unet(), Lora(rank=4))
    assert torch.equal(answer(adapted), answer(unet()))
    assert float((answer(moved(adapted)) - answer(unet())).abs().max()) > 1e-3


def test_only_the_adapter_learns_and_every_convolution_and_projection_has_one() -> None:
    adapted = prepare(unet(), Lora(rank=4))
    assert all(".lora_A." in name or ".lora_B." in name for name in learned(adapted))
    layers = {name for name, module in unet().named_modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))}
    assert {name.split(".lora_")[0] for name in learned(adapted)} == layers


def test_alpha_over_rank_scales_the_update() -> None:
    one, two = (moved(prepare(unet(), Lora(rank=4, alpha=alpha, targets=("conv_out",)))) for alpha in (4.0, 8.0))
    base = answer(unet())
    torch.testing.assert_close(answer(two) - base, 2 * (answer(one) - base), rtol=1e-4, atol=1e-5)
    assert (peft_config(Lora(rank=4, alpha=8.0)).r, peft_config(Lora(rank=4, alpha=8.0)).lora_alpha) == (4, 8.0)


def test_loading_gives_the_same_function() -> None:
    trained = moved(prepare(unet(), Lora(rank=4)))
    torch.manual_seed(5)
    other = prepare(unet(), Lora(rank=4))
    load_trained(other, learned(trained))
    assert torch.equal(answer(other), answer(trained))


def test_the_state_has_peft_s_names_and_the_trained_values() -> None:
    trained = moved(prepare(unet(), Lora(rank=4, targets=("to_q",))))
    state, live = lora_state(trained), learned(trained)
    assert {
        name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.") for name in state
    } == set(live)
    assert sum(float(t.double().square().sum()) for t in state.values()) == pytest.approx(
        sum(float(t.double().square().sum()) for t in live.values())
    )


def test_targets_that_name_nothing_are_refused_with_examples() -> None:
    with pytest.raises(
        UserError, match=r"name no layer of the UNet2DConditionModel: to_qq, attention; expected names such as to_q"
    ):
        prepare(unet(), Lora(targets=("to_qq", "attention")))


def test_tensors_of_another_adapter_are_refused() -> None:
    tensors = learned(prepare(unet(), Lora(rank=4, targets=("to_q", "to_v"))))
    with pytest.raises(UserError, match="first difference"):
        load_trained(prepare(unet(), Lora(rank=4, targets=("to_q",))), tensors)
    with pytest.raises(UserError, match="first difference"):
        load_trained(prepare(unet(), Lora(rank=4, targets=("to_q", "to_v", "to_k"))), tensors)
    with pytest.raises(UserError, match=r"shape \(4, .*rank"):
        load_trained(prepare(unet(), Lora(rank=2, targets=("to_q", "to_v"))), tensors)


def test_a_full_student_learns_everything_and_its_delta_makes_it_again() -> None:
    trained = moved(prepare(unet(), Full()))
    assert set(learned(trained)) == {name for name, _ in trained.named_parameters()}
    base = unet()
    gained = delta(base, learned(trained))
    add_delta(base, gained)
    torch.testing.assert_close(answer(base), answer(trained), rtol=1e-5, atol=1e-6)


def test_a_delta_moves_another_fine_tune_of_the_same_base_as_it_moved_the_base() -> None:
    gained = delta(unet(), learned(moved(prepare(unet(), Full()))))
    other = unet()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    add_delta(other, gained)
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(parameter - before[name], gained[name], rtol=1e-4, atol=1e-6)


def test_a_delta_for_another_network_is_refused() -> None:
    torch.manual_seed(0)
    wider = DenoiserShape(widths=(8, 24), groups=4, heads=2, text_width=6).unet(4, 8)
    with pytest.raises(UserError, match="the delta is for another network: "):
        add_delta(unet(), delta(wider, {name: p.detach() for name, p in wider.named_parameters()}))
