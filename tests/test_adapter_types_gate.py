"""What the gate says of layers, from the names and shapes of their tensors alone."""

import pytest
import torch

from adapter_cases import CASES, CELLS, IN, LAYER, OUT, SHAPES, Tensors, random
from sdlora.errors import LoraFileError
from sdlora.lora.format.adapter_types.stored_type import Shapes
from sdlora.lora.format.errors import REFUSALS
from sdlora.lora.format.identify import identify_layers
from sdlora.lora.format.layer import Adapter


def shapes_of(of: Tensors) -> Shapes:
    ends = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    ends |= {role: f"{role}.weight" for role in ("a1", "a2", "b1", "b2", "bm")}
    return {f"{LAYER}.{ends.get(role, role)}": tuple(t.shape) for role, t in of.items()}


@pytest.mark.parametrize(("case", "layer"), CELLS)
def test_a_layer_without_one_of_its_tensors_is_refused(case: str, layer: str) -> None:
    kind, make, _, _ = CASES[case]
    made = make(SHAPES[layer], random())
    told = identify_layers(shapes_of(made))[LAYER]
    assert told.kind == kind and set(told.keys) == made.keys()
    assert told.shape in ((), SHAPES[layer], (OUT, torch.Size(SHAPES[layer][1:]).numel()))
    for role in made.keys() - {"alpha", "dora_scale", "rescale", "mid", "bm", "diff", "diff_b",
                               "b_norm", "hada_t1", "hada_t2", "lokr_t2"}:  # fmt: skip
        with pytest.raises(LoraFileError) as refused:
            identify_layers(shapes_of({r: t for r, t in made.items() if r != role}))
        assert refused.value.code == "incomplete" and refused.value.code in REFUSALS


@pytest.mark.parametrize(("case", "layer"), CELLS)
def test_a_tensor_of_another_shape_is_refused(case: str, layer: str) -> None:
    """Each tensor in turn with one more number along each axis: what is read fits together."""
    kind, make, _, _ = CASES[case]
    made = make(SHAPES[layer], random())
    shapes = shapes_of(made)
    for key, shape in shapes.items():
        for longer in ((*shape, 2), *(_longer(shape, axis) for axis in range(len(shape)))):
            try:
                told = identify_layers({**shapes, key: longer})[LAYER]
            except LoraFileError as error:
                assert error.code in ("unfit_tensors", "rank")
                continue
            # some axes are free: then it is for a weight of another shape, or of none told
            of = {
                role: torch.ones({**shapes, key: longer}[key_]) for role, key_ in told.keys.items()
            }
            weight = told.shape or {"IA3": (longer[-1],) * 2}.get(kind, (OUT, IN))
            if Adapter(told.kind, of).fits(weight):
                assert Adapter(told.kind, of).delta(torch.ones(weight)).shape == weight


def _longer(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(size + (i == axis) for i, size in enumerate(shape))


LOW, HIGH = f"{LAYER}.lora_down.weight", f"{LAYER}.lora_up.weight"
REFUSED: dict[str, tuple[Shapes, str]] = {
    "a half": ({LOW: (2, 6)}, "incomplete"),
    "alpha alone": ({f"{LAYER}.alpha": ()}, "incomplete"),
    "ranks": ({LOW: (2, 6), HIGH: (5, 3)}, "unfit_tensors"),
    "rank too high": ({LOW: (4, 3), HIGH: (5, 4)}, "rank"),
    "rank absurd": ({LOW: (1025, 2000), HIGH: (2000, 1025)}, "rank"),
    "two kinds": ({LOW: (2, 6), HIGH: (5, 2), f"{LAYER}.diff": (5, 6)}, "mixed"),
    "two alphas": ({LOW: (2, 6), HIGH: (5, 2), f"{LAYER}.alpha": (2,)}, "unfit_tensors"),
    "a core of nothing": (
        {LOW: (2, 6, 1, 1), HIGH: (5, 2, 1, 1), f"{LAYER}.lora_mid.weight": ()}, "unfit_tensors",
    ),
    "odd blocks": ({f"{LAYER}.oft_blocks": (2, 3, 3, 3)}, "unfit_tensors"),
    "too many stages": ({f"{LAYER}.oft_blocks": (4, 4, 2, 2)}, "unfit_tensors"),
    "a side of both": ({f"{LAYER}.weight": (2, 3), f"{LAYER}.on_input": ()}, "unfit_tensors"),
    "no side": ({f"{LAYER}.weight": (), f"{LAYER}.on_input": ()}, "unfit_tensors"),
    "a scale of nothing": (
        {LOW: (2, 6), HIGH: (5, 2), f"{LAYER}.dora_scale": (5, 6)}, "unfit_tensors",
    ),
    "embeddings only": ({"bundle_emb.cat.string_to_param.*": (2, 768)}, "no_layers"),
    "a flat embedding": ({"bundle_emb.cat.clip_l": (768,), LOW: (2, 6)}, "embedding"),
    "an embedding's LoRA": ({"unet.x.lora_embedding_A": (2, 6)}, "unknown_kind"),
    "PEFT's OFT": ({"unet.x.oft_R.default.weight": (2, 6)}, "unknown_kind"),
    "a checkpoint": ({"model.diffusion_model.out.2.weight": (2, 2)}, "unknown_keys"),
    "evil": ({"../../evil.lora_down.weight": (2, 2)}, "unknown_keys"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_unfit_shapes_are_refused_by_name(what: str) -> None:
    shapes, code = REFUSED[what]
    with pytest.raises(LoraFileError) as refused:
        identify_layers(shapes)
    assert refused.value.code == code
    assert "{" not in str(refused.value)  # the sentence is filled in


def test_at_most_25_refusals_each_a_sentence() -> None:
    assert len(REFUSALS) <= 25
    assert all(len(sentence) > 25 and sentence[-1] != "." for sentence in REFUSALS.values())
