"""From a prompt with tags to pictures: against stock pipelines, and as events."""

import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from sdlora.adapters import attach, detach, extract_lora
from sdlora.adapters.fuse import save_model
from sdlora.assets.checkpoints import CheckpointLibrary
from sdlora.errors import ModelError
from sdlora.events import Done, Event, Progress, SampleReady, Started, Step, Stopped, Warned
from sdlora.image_metadata.reader import read_parameters
from sdlora.inference.engine import Engine, render
from sdlora.inference.samplers import SAMPLERS
from sdlora.lora.format.file import LoraFile, write_lora
from sdlora.lora.format.layer import Adapter
from sdlora.lora.library.library import Library
from sdlora.models.base import ModelFamily
from sdlora.models.registry import open_family
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import STARTER_MODEL, Workspace
from tiny import open_tiny, tiny, tiny_lora, weights_hash


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def request(prompt: str = "a cat", **more: Any) -> ImageRequest:
    return ImageRequest.from_values(
        {"prompt": prompt, "steps": 3, "seed": 7, "model": "tiny", **more}
    )


def picture(
    family: ModelFamily, library: Library | None = None, *, prompt: str, **more: Any
) -> Any:
    return pixels(render(family, request(prompt, **more), library)[0][0])


@pytest.fixture(scope="module")
def family() -> ModelFamily:
    return open_tiny("sd1")


@pytest.fixture(scope="module")
def loras(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("neon", "soft")):
        file = tiny_lora(family, seed, 0.05)
        write_lora(LoraFile(file.layers, {"ss_output_name": name}), folder / f"{name}.safetensors")
    wrong = {"lora_unet_x_attn2_to_k": Adapter.lora(torch.ones(2, 2048), torch.ones(4, 2), 2.0)}
    write_lora(LoraFile(wrong), folder / "big.safetensors")
    (folder / "broken.safetensors").write_bytes(b"nonsense, and quite a lot of it")
    return folder


STOCK = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.mark.parametrize("kind", list(STOCK))
def test_stock_pipeline_gives_the_same_image(kind: str, tmp_path: Path) -> None:
    """Attention, feed-forward, convolutions and text encoders, alpha other than rank."""
    family = open_tiny(kind)
    write_lora(tiny_lora(family), tmp_path / "neon.safetensors", torch.float32)
    ours = picture(family, Library([tmp_path]), prompt="a cat <lora:neon>")
    pipeline = STOCK[kind].from_pretrained(tiny(kind))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": ImageRequest().guidance}
    plain, theirs = None, None
    for load in (False, True):
        if load:
            pipeline.load_lora_weights(tmp_path, weight_name="neon.safetensors")
        image = pipeline("a cat", generator=torch.Generator().manual_seed(7), **options).images[0]
        plain, theirs = theirs, pixels(image)
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(theirs - plain).max() > 20
    assert np.abs(picture(family, prompt="a cat") - plain).max() <= 2


def test_no_tag_or_weight_zero_is_the_base_picture(family: ModelFamily, loras: Path) -> None:
    library, pristine = Library([loras]), weights_hash(family)
    base = picture(family, prompt="a cat")
    for prompt in ("a cat <lora:neon:0>", "a cat lora:neon:0 <lora:soft:0:0>", "a cat"):
        assert (picture(family, library, prompt=prompt) == base).all()
    assert (picture(family, library, prompt="a cat <lora:neon>") != base).any()
    assert weights_hash(family) == pristine
    assert (picture(family, prompt="a cat") == base).all()


def test_two_weights_of_a_tag(family: ModelFamily, loras: Path) -> None:
    library = Library([loras])
    prompts = ["<lora:neon:0:1>", "<lora:neon:1:0>", "<lora:neon:1>", ""]
    images = [picture(family, library, prompt=f"a cat {tag}") for tag in prompts]
    assert all((a != b).any() for a, b in itertools.combinations(images, 2))


def test_images_do_not_depend_on_their_batch(family: ModelFamily) -> None:
    together, _ = render(family, request(count=3, batch_size=3, sampler="euler_a"))
    apart, _ = render(family, request(count=3, batch_size=2, sampler="euler_a"))
    for index, (one, other) in enumerate(zip(together, apart, strict=True)):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
        alone = picture(family, prompt="a cat", sampler="euler_a", seed=7 + index)
        assert np.abs(pixels(one) - alone).max() <= 1
    assert (pixels(together[0]) != pixels(together[1])).any()


@pytest.mark.parametrize("sampler", get_args(ImageRequest.model_fields["sampler"].annotation))
def test_every_sampler_paints(sampler: str, family: ModelFamily) -> None:
    its_own = family.pipeline.scheduler
    first = picture(family, prompt="a cat", sampler=sampler, steps=4)
    assert first.std() > 1
    assert (first == picture(family, prompt="a cat", sampler=sampler, steps=4)).all()
    assert family.pipeline.scheduler is its_own


def test_samplers_are_the_settings() -> None:
    assert set(SAMPLERS) == set(get_args(ImageRequest.model_fields["sampler"].annotation))


def test_size_and_negative_prompt(family: ModelFamily) -> None:
    images, _ = render(family, request(width=128, height=72))
    assert images[0].size == (128, 72)
    base = picture(family, prompt="a cat")
    assert (picture(family, prompt="a cat", negative_prompt="dull") != base).any()
    assert (picture(family, prompt="a cat", guidance=1.0) != base).any()


def test_seed_left_open_is_drawn(family: ModelFamily) -> None:
    images = [picture(family, prompt="a cat", seed=-1) for _ in range(2)]
    assert (images[0] != images[1]).any()


def test_live_training_is_sampled_and_left_as_it_was(family: ModelFamily) -> None:
    settings = TrainSettings(data="x", name="x", rank=4, alpha=4, dropout=0.5)
    base = picture(family, prompt="a cat")
    parameters = [p for its in attach(family, settings) for p in its.parameters]
    family.denoiser.train()
    for parameter in parameters:
        parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    before = extract_lora(family)
    first, second = (picture(family, prompt="a cat") for _ in range(2))
    assert (first == second).all() and (first != base).any()  # no dropout, and the LoRA shows
    assert family.denoiser.training and all(p.requires_grad for p in parameters)
    after = extract_lora(family)
    assert all(
        torch.equal(it.tensors["up"], after.layers[name].tensors["up"])
        for name, it in before.layers.items()
    )
    detach(family)
    family.denoiser.eval()


def test_problems_are_told_and_the_rest_is_used(family: ModelFamily, loras: Path) -> None:
    prompt = (
        "a cat <lora:neom:1> <lora:big:1> <lora:broken:1> <lora:soft:high> "
        "<lora:neon:0.5> lora:NEON:0.3"
    )
    images, report = render(family, request(prompt), Library([loras]))
    used = [(use["name"], use["weight"], use["layers"] > 80) for use in report["loras"]]
    assert used == [("neon", pytest.approx(0.8), True)]
    expected = [
        "'high' is not a weight",
        "no LoRA 'neom'. Did you mean neon",
        "a LoRA for Stable Diffusion XL; the open model is Stable Diffusion 1",
        "not a safetensors file",
        "'neon' stands twice, and its weights add up: 0.5 + 0.3 = 0.8",
    ]
    assert len(report["problems"]) == len(expected)
    for problem, part in zip(report["problems"], expected, strict=True):
        assert part in problem
    alone = picture(family, Library([loras]), prompt="a cat <lora:neon:0.8>")
    assert np.abs(pixels(images[0]) - alone).max() <= 1


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning:diffusers")
def test_more_problems(family: ModelFamily, loras: Path, tmp_path: Path) -> None:
    (tmp_path / "neon.safetensors").write_bytes((loras / "neon.safetensors").read_bytes())
    asked = request(
        "b <lora:neon:1>", negative_prompt="ugly AND sad <lora:sof:1>", guidance=1, clip_skip=9
    )
    _, report = render(family, asked, Library([tmp_path, loras]))
    for part in (
        *("name of other files", "AND in the negative prompt", "'sof' is not used"),
        *("takes a guidance above 1", "clip_skip = 9 is more than this model has layers; 2 is"),
    ):
        assert any(part in problem for problem in report["problems"]), part
    assert report["unused"] == {"sof": "there is no LoRA 'sof'. Did you mean soft?"}
    _, report = render(family, request("<lora:neon:1e38>"), Library([loras]))
    assert "the numbers overflowed" in report["problems"][0]


@pytest.fixture
def space(workspace: Path, loras: Path) -> Workspace:
    space = Workspace.open(workspace)
    (space.models / "tiny").symlink_to(tiny("sd1"))
    for path in loras.iterdir():
        (space.loras / path.name).write_bytes(path.read_bytes())
    return space


def kinds(events: list[Event]) -> list[type[Event]]:
    return [kind for kind, _ in itertools.groupby(map(type, events))]


def test_events_of_a_request(engine: Engine, space: Workspace) -> None:
    asked = request("a cat, lora:neon:0.8 <lora:nothere:1>", count=3, batch_size=2)
    events = list(engine.generate(asked))
    painted = [Step, SampleReady]
    assert kinds(events) == [Progress, Started, Warned, *painted, *painted, Done]
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6] and steps[0].total == 6
    assert steps[0].seconds_left is None, "one step tells nothing yet"
    assert steps[4].seconds_left and steps[-1].seconds_left == 0
    samples = [event for event in events if isinstance(event, SampleReady)]
    assert [sample.seed for sample in samples] == [7, 8, 9]
    assert all(Path(sample.path).is_relative_to(space.outputs) for sample in samples)
    assert samples[0].report["loras"][0]["name"] == "neon"
    assert "nothere" in samples[0].report["problems"][0]

    use = samples[1].report["loras"][0]
    with Image.open(samples[1].path) as image:
        text = image.text["parameters"]  # type: ignore[attr-defined]
    assert text.startswith("a cat, lora:neon:0.8 <lora:nothere:1>\nSteps: 3, Sampler: DPM++ 2M, ")
    its = f'Seed: 8, Size: 64x64, Model: tiny, RNG: CPU, Lora hashes: "neon: {use["hash"]}"'
    assert its in text

    again = list(engine.generate(asked))  # the model stays open, no picture is written over
    assert kinds(again)[0] is Started
    paths = {event.path for event in (*events, *again) if isinstance(event, SampleReady)}
    assert len(paths) == 6
    assert Path(samples[0].path).read_bytes() == next(
        Path(event.path).read_bytes() for event in again if isinstance(event, SampleReady)
    )


def test_drawn_seed_is_recorded(engine: Engine) -> None:
    events = list(engine.generate(request(seed=-1, count=2)))
    seeds = [event.seed for event in events if isinstance(event, SampleReady)]
    assert seeds[1] == seeds[0] + 1 and 0 <= seeds[0] < 2**32


def test_stops_within_a_step(engine: Engine) -> None:
    seen: list[Event] = []
    for event in engine.generate(
        request(steps=50, count=2, batch_size=1),
        lambda: sum(isinstance(event, Step) for event in seen) >= 3,
    ):
        seen.append(event)
    assert isinstance(seen[-1], Stopped) and 3 <= seen[-1].step <= 5
    assert kinds(list(engine.generate(request())))[-1] is Done  # and goes on working


def test_closing_the_iterator_ends_the_work(engine: Engine) -> None:
    events = engine.generate(request(steps=500))
    for event in events:
        if isinstance(event, Step):
            break
    events.close()  # type: ignore[attr-defined]
    assert kinds(list(engine.generate(request())))[-1] is Done


def test_a_changed_file_is_read_again(engine: Engine, space: Workspace) -> None:
    asked = request("a cat <lora:neon:1>")
    first = [e.path for e in engine.generate(asked) if isinstance(e, SampleReady)]
    (space.loras / "neon.safetensors").write_bytes((space.loras / "soft.safetensors").read_bytes())
    second = [e.path for e in engine.generate(asked) if isinstance(e, SampleReady)]
    with Image.open(first[0]) as one, Image.open(second[0]) as other:
        assert (pixels(one) != pixels(other)).any()


def test_models_change_and_unknown_ones_are_errors(engine: Engine, space: Workspace) -> None:
    list(engine.generate(request()))
    (space.models / "v").symlink_to(tiny("sd2"))
    events = list(engine.generate(request(model="v")))
    assert "Stable Diffusion 2" in [e for e in events if isinstance(e, Started)][0].details["model"]
    with pytest.raises(ModelError, match="not on this computer"):
        list(engine.generate(request(model="someone/model")))


def test_a_known_hash_of_the_model_is_in_the_picture(engine: Engine, space: Workspace) -> None:
    starter = open_family(str(STARTER_MODEL), torch.float16, torch.device("cpu"))
    save_model(starter, space.models / "mine.safetensors", False, {})
    library = CheckpointLibrary(space)
    texts = []
    for _ in range(2):
        asked = request(model="mine", steps=1, width=64, height=64)
        (path,) = [e.path for e in engine.generate(asked) if isinstance(e, SampleReady)]
        texts.append(read_parameters(Path(path)).fields)
        hash_ = library.hashed(library.find("mine")).autov2
    assert "Model hash" not in texts[0]
    assert (texts[1]["Model hash"], texts[1]["Model"]) == (hash_, "mine")


def test_a_base_in_eight_bits_is_opened_anew_and_named(engine: Engine) -> None:
    """With LoRAs that are not merged there; and the whole base is back afterwards."""
    pictures, said = [], []
    for precision in ("full", "int8", "full"):
        asked = request("a cat <lora:neon:1>", base_precision=precision)
        events = list(engine.generate(asked))
        said += [e.details.get("frozen weights", "") for e in events if isinstance(e, Started)]
        (path,) = (e.path for e in events if isinstance(e, SampleReady))
        with Image.open(path) as image:
            pictures.append(pixels(image))
    assert said[0] == said[2] == "" and said[1].startswith("int8 in ")
    assert (pictures[0] == pictures[2]).all() and (pictures[0] != pictures[1]).any()
    assert abs(pictures[0] - pictures[1]).mean() < 8


def test_a_base_with_streamed_blocks_makes_the_same_picture(engine: Engine) -> None:
    """Without LoRAs to the bit; with them but for rounding, for they are not merged there."""
    for prompt, apart in (("a cat", 0.0), ("a cat <lora:neon:1>", 1.0)):
        pictures = []
        for share in (0.0, 1.0):
            events = list(engine.generate(request(prompt, stream_blocks=share)))
            (path,) = (e.path for e in events if isinstance(e, SampleReady))
            with Image.open(path) as image:
                pictures.append(pixels(image))
        (started,) = (event for event in events if isinstance(event, Started))
        assert " in main memory, " in started.details["streamed blocks"]
        assert abs(pictures[0] - pictures[1]).max() <= apart
