"""Gradients of adapters on a tiny model, and what autograd keeps for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.adapters import attach
from sdlora.models.base import ModelFamily
from sdlora.settings.train import TrainSettings
from tiny import LATENT


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def kept(model: nn.Module) -> Iterator[list[Tensor]]:
    """Tensors that autograd keeps for backward and that are not the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (pointer := tensor.untyped_storage().data_ptr()) not in own:
            found[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tensors: list[Tensor] = []
        yield tensors
        tensors += found.values()


def adapted(family: ModelFamily, **settings: Any) -> list[nn.Parameter]:
    """The parameters of adapters that have learnt something."""
    groups = attach(family, TrainSettings(data="x", name="x", rank=4, alpha=4, **settings))
    rng = torch.Generator().manual_seed(0)
    parameters = [p for group in groups for p in group.parameters]
    for parameter in parameters:
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng)
    family.denoiser.train()
    return parameters


def step(family: ModelFamily, parameters: list[nn.Parameter]) -> Tensor:
    """The gradient of all adapters for one picture."""
    x, t = random(1, 4, LATENT, LATENT).requires_grad_(), torch.tensor([500])
    with torch.no_grad():
        text = family.encode_prompts(["a cat"])
    text = family.condition_on_size(text, torch.tensor([[64, 64, 0, 0, 64, 64]]))
    with family.autocast():
        family.predict(x, t, text).float().square().mean().backward()
    return torch.cat([p.grad.float().flatten() for p in parameters if p.grad is not None])


def gradients(family: ModelFamily, **settings: Any) -> Tensor:
    parameters = adapted(family, **settings)
    found = step(family, parameters)
    assert len(found) == sum(p.numel() for p in parameters)
    return found
