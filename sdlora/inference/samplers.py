"""Samplers by name: the diffusers scheduler that computes each, for models of either noise.

For one plain text per image this computes what the stock pipelines compute, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from sdlora.noise_schedule import NoiseSchedule

Scheduler = tuple[Any, dict[str, Any]]  # class of diffusers, its options
FALLBACK = "euler"  # in place of what a model's noise has no scheduler for


@dataclass(frozen=True)
class Sampler:
    """One way to remove the noise: its scheduler for DDPM, and for rectified flow if it has one."""

    ddpm: Scheduler
    flow: Scheduler | None = None

    def scheduler_for(self, noise: NoiseSchedule) -> Scheduler | None:
        """Return the scheduler for a model's noise."""
        return self.flow if noise.prediction == "flow" else self.ddpm


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler((DDIMScheduler, {})),
    "euler": Sampler((EulerDiscreteScheduler, {}), (FlowMatchEulerDiscreteScheduler, {})),
    "euler_a": Sampler((EulerAncestralDiscreteScheduler, {})),
    "dpm++_2m": Sampler((DPMSolverMultistepScheduler, {}), (DPMSolverMultistepScheduler, {})),
    "dpm++_2m_karras": Sampler((DPMSolverMultistepScheduler, {"use_karras_sigmas": True})),
    "dpm++_2m_sde": Sampler((DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"})),
    "unipc": Sampler((UniPCMultistepScheduler, {}), (UniPCMultistepScheduler, {})),
}
