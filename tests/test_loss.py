"""Every loss, weight and noise against its formula in float64, and a step's gradient as well."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import interpolate

from sdlora.adapters import attach, detach
from sdlora.adapters.types import ADAPTER
from sdlora.errors import SettingsError
from sdlora.models.base import Conditioning, ModelFamily
from sdlora.noise_schedule import (
    DDPM,
    FLOW_WEIGHTS,
    LossWeighting,
    RectifiedFlow,
    TimestepSampling,
    dynamic_shift,
    noise_like,
)
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentBatch
from sdlora.training.loss import DiffusionLoss, NoisedLatents, loss_of
from test_noise_schedule import CONFIG, alpha_bar
from tiny import open_tiny

SHAPE = torch.Size((4, 4, 8, 8))
T = torch.tensor([3, 250, 600, 999])


def asked(**values: Any) -> TrainSettings:
    return TrainSettings.from_values({"data": "x", "name": "x", **values})


def ddpm(prediction: str = "epsilon") -> DDPM:
    return DDPM.from_config({**CONFIG, "prediction_type": prediction})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Parrot:
    """A family that answers what it was told, and keeps what it was asked."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def condition_on_size(self, conditioning: Conditioning, sizes: Tensor) -> Conditioning:
        return conditioning

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.noisy = noisy
        return self.answer


def batch_of(**more: Any) -> LatentBatch:
    latents = torch.randn(SHAPE, generator=seeded(1))
    return LatentBatch(
        latents, Conditioning({"context": torch.zeros(4, 1)}), torch.zeros(4, 6), **more
    )


def reference(
    settings: TrainSettings, prediction: str, batch: LatentBatch, answer: Tensor
) -> Tensor:
    """(B,) losses at T, every formula written out, float64."""
    eps, losses = torch.randn(SHAPE, generator=seeded(2)).double(), []
    for row, t in enumerate(T.tolist()):
        bar = alpha_bar(t)
        snr = bar / (1 - bar)
        x0, noise = batch.latents[row].double(), eps[row]
        is_v = prediction == "v_prediction"
        target = math.sqrt(bar) * noise - math.sqrt(1 - bar) * x0 if is_v else noise
        difference = (answer[row].double() - target).abs()
        c = {
            "constant": 0.1, "exponential": math.exp(math.log(0.1) * t / 1000),
            "snr": 0.9 / (1 + math.sqrt(1 / snr)) ** 2 + 0.1,
        }[settings.huber_schedule]  # fmt: skip
        error = {
            "l2": difference**2, "l1": difference,
            "huber": 2 * c * (torch.sqrt(difference**2 + c**2) - c),
            "smooth_l1": 2 * (torch.sqrt(difference**2 + c**2) - c),
        }[settings.loss]  # fmt: skip
        weight = {
            "flat": 1.0,
            "min_snr": min(snr, 5) / (snr + 1 if is_v else snr),
            "debiased": math.sqrt(snr) / (snr + 1) if is_v else 1 / math.sqrt(snr),
        }[settings.loss_weighting]
        losses.append(weight * error.mean())
    return torch.stack(losses)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("weighting", ["flat", "min_snr", "debiased"])
@pytest.mark.parametrize(
    ("loss", "schedule"),
    [("l2", "snr"), ("l1", "snr"), ("huber", "constant"), ("huber", "exponential")]
    + [("huber", "snr"), ("smooth_l1", "snr")],
)
def test_every_loss_is_its_formula(
    prediction: str, weighting: str, loss: str, schedule: str
) -> None:
    settings = asked(loss=loss, loss_weighting=weighting, huber_schedule=schedule)
    batch, answer = batch_of(), torch.randn(SHAPE, generator=seeded(3))
    eps = torch.randn(SHAPE, generator=seeded(2))
    objective = DiffusionLoss.from_settings(settings, ddpm(prediction))
    ours = loss_of(Parrot(answer), batch, NoisedLatents(T, eps, eps), objective)  # type: ignore[arg-type]
    theirs = reference(settings, prediction, batch, answer)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=2e-4)


def test_masks_and_weights_of_rows() -> None:
    mask = torch.rand(4, 1, 8, 8, generator=seeded(4))
    mask[3] = 0
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    batch, answer = batch_of(mask=mask, weights=weights), torch.randn(SHAPE, generator=seeded(3))
    eps = torch.randn(SHAPE, generator=seeded(2))
    ours = loss_of(Parrot(answer), batch, NoisedLatents(T, eps, eps), DiffusionLoss(ddpm()))  # type: ignore[arg-type]
    errors = (answer.double() - eps.double()).square().mean(1, keepdim=True) * mask.double()
    theirs = weights.double() * errors.sum((1, 2, 3)) / mask.double().sum((1, 2, 3)).clamp(min=1e-6)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=1e-5)
    assert ours[3] == 0, "nothing of it is shown"
    one = loss_of(
        Parrot(answer[1:2]), batch[1:2], NoisedLatents(T, eps, eps)[1:2], DiffusionLoss(ddpm())
    )  # type: ignore[arg-type]
    torch.testing.assert_close(one, ours[1:2])


def test_zero_terminal_snr_is_the_papers() -> None:
    noise = DiffusionLoss.from_settings(asked(zero_terminal_snr=True), ddpm("v_prediction")).noise
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bars = (1 - rescale_zero_terminal_snr(betas)).cumprod(0).float()
    torch.testing.assert_close(noise.alphas_bar, bars, atol=1e-6, rtol=1e-4)
    assert noise.alphas_bar[-1] == 0
    assert all(
        noise.loss_weight(T, LossWeighting(name, 5.0)).isfinite().all()
        for name in ("debiased", "min_snr")
    )
    for schedule in ("constant", "exponential", "snr"):
        objective = DiffusionLoss(noise, loss="huber", schedule=schedule)
        assert objective.distance(torch.ones(SHAPE), torch.zeros(SHAPE), T).isfinite().all()
    with pytest.raises(SettingsError, match="predicts v"):
        DiffusionLoss.from_settings(asked(zero_terminal_snr=True), ddpm())


def test_noise_in_several_resolutions_and_of_whole_channels() -> None:
    rng = seeded(7)
    expected, size, strength = torch.randn(SHAPE, generator=rng).double(), 8, 1.0
    for _ in range(3):
        coarser = 2 + 2 * float(torch.rand((), generator=rng))
        size, strength = max(int(size / coarser), 1), strength * 0.4
        layer = torch.randn(4, 4, size, size, generator=rng).double()
        expected += strength * interpolate(layer, (8, 8), mode="bilinear")
        if size == 1:
            break
    expected /= torch.stack([row.std() for row in expected]).view(4, 1, 1, 1)
    expected += 0.1 * torch.randn(4, 4, 1, 1, generator=rng).double()
    ours = noise_like(SHAPE, seeded(7), 0.1, 3, 0.4)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-4)
    plain = noise_like(SHAPE, seeded(7), 0.0, 0, 0.4)
    assert torch.equal(plain, torch.randn(SHAPE, generator=seeded(7))), "off is the noise of old"
    torch.testing.assert_close(
        noise_like(SHAPE, seeded(), 0.0, 2, 1.0).std((1, 2, 3)), torch.ones(4)
    )


def test_input_perturbation_is_seen_and_not_asked_for() -> None:
    objective = DiffusionLoss.from_settings(asked(input_perturbation=0.3), ddpm())
    draw = objective.sample(SHAPE, seeded(5))
    rng = seeded(5)
    t, eps = ddpm().sample_timesteps(4, rng), torch.randn(SHAPE, generator=rng)
    assert torch.equal(draw.t, t) and torch.equal(draw.eps, eps)
    torch.testing.assert_close(draw.mixed, eps + 0.3 * torch.randn(SHAPE, generator=rng))
    family, batch = Parrot(eps), batch_of()
    losses = loss_of(family, batch, draw, objective)  # type: ignore[arg-type]
    assert losses.eq(0).all(), "the noise is what is to be told"
    torch.testing.assert_close(family.noisy, ddpm().add_noise(batch.latents, draw.mixed, t))


def logit_normal_below(u: float, mean: float, spread: float) -> float:
    return 0.5 * (1 + math.erf((math.log(u / (1 - u)) - mean) / spread / math.sqrt(2)))


@pytest.mark.parametrize(
    ("values", "below"),
    [
        ({}, lambda u: u),
        ({"shift": 3.0}, lambda u: u / (3 - 2 * u)),
        ({"logit_normal": True, "mean": 0.5, "spread": 0.8},
         lambda u: logit_normal_below(u, 0.5, 0.8)),
        ({"logit_normal": True, "shift": 2.0},
         lambda u: logit_normal_below(u / (2 - u), 0.0, 1.0)),
    ],
)  # fmt: skip
def test_levels_have_their_density(values: dict[str, Any], below: Callable[[float], float]) -> None:
    """The share of levels below u is the distribution function's."""
    drawn = TimestepSampling(**values).sample(20_000, seeded())
    for u in (0.1, 0.3, 0.5, 0.8, 0.95):
        assert float((drawn < u).double().mean()) == pytest.approx(below(u), abs=0.012), u


def test_levels_within_a_range() -> None:
    for more in ({}, {"timestep_density": "logit_normal"}, {"timestep_shift": 3}):
        objective = DiffusionLoss.from_settings(
            asked(min_timestep=200, max_timestep=300, **more), ddpm()
        )
        t = objective.sample(torch.Size((2000, 1, 1, 1)), seeded()).t
        assert (int(t.min()), int(t.max())) == (200, 299) or "timestep_density" in more
        assert t.min() >= 200 and t.max() < 300 and t.dtype == torch.long
    with pytest.raises(SettingsError, match="min_timestep = 300 must be below"):
        asked(min_timestep=300, max_timestep=300)


def test_flows_agree_with_diffusers() -> None:
    flow, x0 = RectifiedFlow(), torch.randn(SHAPE, generator=seeded(1))
    eps, t = torch.randn(SHAPE, generator=seeded(2)), torch.tensor([1.0, 250.0, 600.0, 999.0])
    scheduler, rows = FlowMatchEulerDiscreteScheduler(), []
    for i, level in enumerate(t.tolist()):
        theirs_t = scheduler.timesteps[[1000 - int(level)]]
        rows.append(scheduler.scale_noise(x0[i : i + 1], theirs_t, eps[i : i + 1]))
    noisy = torch.cat(rows)
    torch.testing.assert_close(flow.add_noise(x0, eps, t), noisy)
    # x0 is where the direction leads from any level
    sigma = (t / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy - sigma * flow.target(x0, eps, t), x0, atol=1e-5, rtol=1e-5)
    for ours, theirs in (("flat", "none"), ("sigma_sqrt", "sigma_sqrt"), ("cosmap", "cosmap")):
        expected = compute_loss_weighting_for_sd3(theirs, t.double() / 1000)
        torch.testing.assert_close(
            flow.loss_weight(t, LossWeighting(ours)), expected.float(), atol=0, rtol=1e-5
        )
    assert FLOW_WEIGHTS.keys() == {"flat", "sigma_sqrt", "cosmap"}


NORMAL = TimestepSampling(logit_normal=True)


def test_flows_draw_levels_as_diffusers_does() -> None:
    ours = RectifiedFlow().sample_timesteps(20_000, seeded(), NORMAL) / 1000
    theirs = compute_density_for_timestep_sampling("logit_normal", 20_000, 0.0, 1.0)
    shares = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    torch.testing.assert_close(ours.quantile(shares), theirs.quantile(shares), atol=0.02, rtol=0)
    assert ours.min() > 0 and ours.max() < 1
    assert dynamic_shift(256) == pytest.approx(0.5)
    assert dynamic_shift(4096) == pytest.approx(1.15)


# A step's gradient

Roles = dict[str, Tensor]


def flat(weight: Tensor) -> Tensor:
    return weight.flatten(1)


def lora_changes(of: Roles, weight: Tensor, scale: float) -> Tensor:
    return weight + (scale * flat(of["lora_B"]) @ flat(of["lora_A"])).view(weight.shape)


def dora_changes(of: Roles, weight: Tensor, scale: float) -> Tensor:
    """arXiv:2402.09353, eq. 5, and sec. 4.3: the norm counts as a constant."""
    by_input = lora_changes(of, weight, scale).transpose(0, 1)
    merged = by_input.flatten(1)
    norm = merged.norm(dim=1, keepdim=True).detach()
    magnitudes = of["lora_magnitude_vector"].view(-1, 1)
    return (magnitudes * merged / norm).view(by_input.shape).transpose(0, 1)


def loha_changes(of: Roles, weight: Tensor, scale: float) -> Tensor:
    one, two = (of[f"hada_w{i}_a"] @ of[f"hada_w{i}_b"] for i in (1, 2))
    return weight + (scale * one * two).view(weight.shape)


def lokr_changes(of: Roles, weight: Tensor, scale: float) -> Tensor:
    small = of.get("lokr_w1")
    small = of["lokr_w1_a"] @ of["lokr_w1_b"] if small is None else small
    large = of.get("lokr_w2")
    large = of["lokr_w2_a"] @ of["lokr_w2_b"] if large is None else flat(large)
    window = math.prod(weight.shape[2:])
    large = large.view(large.shape[0], -1, window)
    product = torch.einsum("ab,cdw->acbdw", small, large)
    return weight + scale * product.reshape(weight.shape)


CHANGES = {
    "lora": lora_changes, "dora": dora_changes, "loha": loha_changes, "lokr": lokr_changes,
}  # fmt: skip


def learning_tensors(layer: Any) -> Roles:
    """By peft's names."""
    found = ((name, getattr(layer, name, {})) for name in layer.adapter_layer_names)
    tensors = {name: its[ADAPTER] for name, its in found if ADAPTER in its}
    return {name: getattr(its, "weight", its) for name, its in tensors.items()}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_steps_gradient_is_that_of_float64(kind: str) -> None:
    """The same step with every changed weight written out, of the same model in double precision,
    without peft; after some learning, so that no factor is zero."""
    family, oracle = open_tiny("sd1"), open_tiny("sd1").denoiser.double()
    settings = asked(adapter=kind, rank=3, alpha=2, targets=["attention", "feed_forward", "conv"])
    rng = seeded(1)
    for its in attach(family, settings):
        for parameter in its.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    batch = batch_of()
    batch = LatentBatch(batch.latents, family.encode_prompts(["a", "b", "c", "d"]), batch.sizes)
    objective = DiffusionLoss.from_settings(settings, family.noise)
    draw = NoisedLatents(T, *[torch.randn(SHAPE, generator=seeded(2))] * 2)
    loss = loss_of(family, batch, draw, objective).sum()
    loss.backward()

    weights, doubles = {}, {}
    plain = dict(oracle.named_parameters())
    for part, path in family.module_names().values():
        layer: Any = family.components[part].get_submodule(path)
        if part == "denoiser" and hasattr(layer, "base_layer"):
            of = {
                n: p.detach().double().requires_grad_() for n, p in learning_tensors(layer).items()
            }
            doubles[path] = of
            scale = layer.scaling[ADAPTER]
            weights[f"{path}.weight"] = CHANGES[kind](of, plain[f"{path}.weight"], scale)
    bars = torch.tensor([alpha_bar(t) for t in T.tolist()], dtype=torch.float64)
    signal, sigma = bars.sqrt().view(-1, 1, 1, 1), (1 - bars).sqrt().view(-1, 1, 1, 1)
    noisy = signal * batch.latents.double() + sigma * draw.eps.double()
    given = (noisy, T, batch.conditioning.tensors["context"].double())
    answer = functional_call(oracle, {**plain, **weights}, given).sample
    errors = (answer - draw.eps.double()).square().flatten(1).mean(1)
    ((5 * (1 - bars) / bars).clamp(max=1) * errors).sum().backward()

    assert len(doubles) > 20
    for path, of in doubles.items():
        ours = learning_tensors(family.denoiser.get_submodule(path))
        for name, theirs in of.items():
            grad, exact = ours[name].grad, theirs.grad
            assert grad is not None and exact is not None and exact.norm() > 0
            far = float((grad.double() - exact).norm() / exact.norm())
            assert far < 2e-4, (path, name, far)
    detach(family)


def test_objective_of_a_family_in_use() -> None:
    """What a v model is asked: its own noise, and nothing random beyond the generator."""
    family: ModelFamily = open_tiny("sd2")
    objective = DiffusionLoss.from_settings(
        asked(multires_noise=2, noise_offset=0.05), family.noise
    )
    assert objective.noise.prediction == "v_prediction"
    draws = [objective.sample(SHAPE, seeded(3)) for _ in range(2)]
    assert torch.equal(draws[0].mixed, draws[1].mixed)
