"""The noise against diffusers' own scheduler and a reference in float64."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler

from sdlora.errors import ModelError, SettingsError
from sdlora.noise_schedule import (
    DDPM,
    UNIFORM,
    LossWeighting,
    NoiseSchedule,
    RectifiedFlow,
    TimestepSampling,
)

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
T = torch.tensor([0, 1, 250, 999])


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(4, 4, 3, 5, generator=rng), torch.randn(4, 4, 3, 5, generator=rng)


def alpha_bar(t: int) -> float:
    """The product written out, float64."""
    ends = math.sqrt(0.00085), math.sqrt(0.012)
    betas = [(ends[0] + (ends[1] - ends[0]) * i / 999) ** 2 for i in range(t + 1)]
    return math.prod(1 - beta for beta in betas)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_agrees_with_diffusers(prediction: str) -> None:
    noise, oracle = (
        DDPM.from_config({**CONFIG, "prediction_type": prediction}),
        DDPMScheduler(**CONFIG),
    )
    x0, eps = latents()
    torch.testing.assert_close(noise.add_noise(x0, eps, T), oracle.add_noise(x0, eps, T))
    target = eps if prediction == "epsilon" else oracle.get_velocity(x0, eps, T)
    torch.testing.assert_close(noise.target(x0, eps, T), target)


def test_agrees_with_float64() -> None:
    x0, eps = latents()
    noisy = DDPM.from_config(CONFIG).add_noise(x0, eps, T)
    for row, t in enumerate(T.tolist()):
        signal = math.sqrt(alpha_bar(t)), math.sqrt(1 - alpha_bar(t))
        expected = signal[0] * x0[row].double() + signal[1] * eps[row].double()
        torch.testing.assert_close(noisy[row].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr(prediction: str) -> None:
    weights = DDPM.from_config({**CONFIG, "prediction_type": prediction}).loss_weight(
        T, LossWeighting("min_snr", 5.0)
    )
    for weight, t in zip(weights.tolist(), T.tolist(), strict=True):
        snr = alpha_bar(t) / (1 - alpha_bar(t))
        assert weight == pytest.approx(
            min(snr, 5) / (snr if prediction == "epsilon" else snr + 1), rel=1e-3
        )
    assert DDPM.from_config(CONFIG).loss_weight(T, LossWeighting("min_snr", 0)).tolist() == [
        1,
        1,
        1,
        1,
    ]


def test_zero_terminal_snr_has_finite_weights() -> None:
    rescaled = {**CONFIG, "rescale_betas_zero_snr": True}
    for prediction in ("epsilon", "v_prediction"):
        noise = DDPM.from_config({**rescaled, "prediction_type": prediction})
        assert noise.loss_weight(torch.arange(1000), LossWeighting("min_snr", 5.0)).isfinite().all()


def test_other_schedulers_configs_give_the_same_table() -> None:
    for kind in (PNDMScheduler, EulerDiscreteScheduler):
        table = DDPM.from_config(kind(**CONFIG).config).alphas_bar
        torch.testing.assert_close(table, DDPM.from_config(CONFIG).alphas_bar)


def test_sampled_levels_depend_on_the_generator_only() -> None:
    noise = DDPM.from_config(CONFIG)
    draws = [
        noise.sample_timesteps(2000, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].min() >= 0 and draws[0].max() <= 999 and 450 < draws[0].float().mean() < 550


def test_half_precision_latents_keep_their_type() -> None:
    x0, eps = (x.bfloat16() for x in latents())
    noise = DDPM.from_config(CONFIG)
    assert noise.add_noise(x0, eps, T).dtype == torch.bfloat16
    assert noise.target(x0, eps, T).dtype == torch.float32


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ModelError, match="sample"):
        DDPM.from_config({**CONFIG, "prediction_type": "sample"})


CONTRACT: dict[str, NoiseSchedule] = {
    "epsilon": DDPM.from_config(CONFIG),
    "v_prediction": DDPM.from_config({**CONFIG, "prediction_type": "v_prediction"}),
    "flow": RectifiedFlow(),
}
WEIGHTINGS = {"flow": ("flat", "sigma_sqrt", "cosmap")}


@pytest.mark.parametrize("prediction", CONTRACT)
def test_a_noise_schedule_keeps_its_contract(prediction: str) -> None:
    """Every schedule that a family may have: levels, mixtures, targets, weights."""
    noise, (x0, eps) = CONTRACT[prediction], (rows[:1].expand_as(rows) for rows in latents())
    assert noise.num_steps == 1000 and noise.prediction == prediction
    assert noise.to(torch.device("cpu")).prediction == prediction
    for sampling in (UNIFORM, TimestepSampling(low=0.2, high=0.3), TimestepSampling(True, shift=3)):
        rng = torch.Generator().manual_seed(3)
        t = noise.sample_timesteps(500, rng, sampling)
        assert t.shape == (500,) and t.min() >= 1000 * sampling.low
        assert t.max() < 1000 * sampling.high and len(t.unique()) > 50
    levels = torch.tensor([2, 50, 250, 999])
    t = levels.float() if prediction == "flow" else levels
    noisy = noise.add_noise(x0, eps, t)
    # the more noise, the nearer the mixture is to it
    far = [(row - other).norm() for row, other in zip(noisy, eps, strict=True)]
    assert far == sorted(far, reverse=True)
    assert noise.add_noise(x0.half(), eps.half(), t).dtype == torch.float16
    # the target and the mixture give the latents back
    target = noise.target(x0, eps, t)
    assert target.dtype == torch.float32
    snr = noise.snr(t)
    assert snr.shape == (len(t),) and (snr.diff() < 0).all() and snr.isfinite().all()
    if prediction == "flow":
        back = noisy - (t / 1000).view(-1, 1, 1, 1) * target
    else:
        signal, sigma = ((snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt())
        signal, sigma = signal.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
        mixture = (noisy - sigma * target) / signal, signal * noisy - sigma * target
        back = mixture[prediction == "v_prediction"]
    torch.testing.assert_close(back[:3], x0[:3], atol=1e-3, rtol=1e-3)
    known = WEIGHTINGS.get(prediction, ("flat", "min_snr", "debiased"))
    for name in ("flat", "min_snr", "debiased", "sigma_sqrt", "cosmap"):
        weighting = LossWeighting(name, 5.0)
        if name not in known:
            with pytest.raises(SettingsError, match="has no meaning for this model's noise"):
                noise.check_weighting(weighting)
            continue
        noise.check_weighting(weighting)
        weights = noise.loss_weight(t, weighting)
        assert weights.shape == (len(t),) and (weights > 0).all()
    assert noise.loss_weight(t).tolist() == [1.0] * len(t)


@pytest.mark.parametrize("prediction", CONTRACT)
def test_zero_terminal_snr_is_for_models_that_predict_v(prediction: str) -> None:
    noise = CONTRACT[prediction]
    if noise.allows_zero_terminal_snr:
        last = torch.tensor([noise.num_steps - 1])
        assert noise.zero_terminal_snr().snr(last) == 0 < noise.snr(last)
        return
    with pytest.raises(SettingsError, match="Leave it off"):
        noise.zero_terminal_snr()
