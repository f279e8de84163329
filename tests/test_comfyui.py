"""ComfyUI's graphs: LoRAs whatever node applies them, and a sentence for all that is not read."""

import copy
import json
from typing import Any

import pytest

from recorded_metadata import COMFY
from sdlora.image_metadata.a1111 import ImageMetadata
from sdlora.image_metadata.reader import parse_infotext
from sdlora.prompt import parse_prompt

Node = dict[str, Any]


def node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}


def graph(text: Any = "a cat", **nodes: Node) -> dict[str, Any]:
    """A plain graph, and more nodes. Model and text encoder come from `lora`, if that is there."""
    model, clip = (["lora", 0], ["lora", 1]) if "lora" in nodes else (["4", 0], ["4", 1])
    sampler = {
        **COMFY["3"]["inputs"], "model": model, "positive": ["6", 0], "negative": ["7", 0],
        "latent_image": ["5", 0],
    }  # fmt: skip
    plain = {
        "3": node("KSampler", **sampler),
        "4": COMFY["4"],
        "5": COMFY["5"],
        "6": node("CLIPTextEncode", text=text, clip=clip),
        "7": node("CLIPTextEncode", text="bad", clip=clip),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0]),
    }
    return plain | nodes


def read(record: dict[str, Any]) -> ImageMetadata:
    return parse_infotext(json.dumps(record))


BASE = {"model": ["4", 0], "clip": ["4", 1]}
ROWS = {"__value__": [
    {"name": "ink", "strength": 0.8, "clipStrength": 0.5, "active": True},
    {"name": "off", "strength": 1, "active": False},
]}  # fmt: skip
# what applies the LoRAs -> the tags that say the same
LOADERS: list[tuple[dict[str, Node], str]] = [
    ({"lora": node("LoraLoader", lora_name="a/ink.safetensors", strength_model=0.8,
                   strength_clip=0.5, **BASE)}, "<lora:a/ink:0.5:0.8>"),
    ({"lora": node("LoraLoaderModelOnly", lora_name="ink.safetensors", strength_model=0.8,
                   model=["4", 0])}, "<lora:ink:0:0.8>"),
    ({"lora": node("Lora Loader (LoraManager)", text="<lora:ink:0.8:0.5>", loras=ROWS, **BASE)},
     "<lora:ink:0.5:0.8>"),
    ({"lora": node("Lora Loader (LoraManager)", text="", loras={"__value__": []},
                   lora_stack=["s", 0], **BASE),
      "s": node("Lora Stacker (LoraManager)", text="", loras=ROWS)}, "<lora:ink:0.5:0.8>"),
    ({"lora": node("CR Apply LoRA Stack", lora_stack=["s", 0], **BASE),
      "s": node("LoRA Stacker", input_mode="simple", lora_count=2, lora_name_1="ink.safetensors",
                lora_wt_1=0.8, model_str_1=0.1, clip_str_1=0.2, lora_name_2="None", lora_wt_2=1,
                lora_name_3="off.safetensors", lora_wt_3=1)}, "<lora:ink:0.8>"),
    ({"lora": node("CR Apply LoRA Stack", lora_stack=["s", 0], **BASE),
      "s": node("LoRA Stacker", input_mode="advanced", lora_count=1, lora_name_1="ink.safetensors",
                lora_wt_1=1, model_str_1=0.8, clip_str_1=0.5)}, "<lora:ink:0.5:0.8>"),
    ({"lora": node("CR Apply LoRA Stack", lora_stack=["s", 0], **BASE),
      "s": node("CR LoRA Stack", switch_1="On", lora_name_1="ink.safetensors", model_weight_1=0.8,
                clip_weight_1=0.5, switch_2="Off", lora_name_2="off.safetensors",
                model_weight_2=1, clip_weight_2=1)}, "<lora:ink:0.5:0.8>"),
    ({"lora": node("Power Lora Loader (rgthree)", lora_1={"on": True, "lora": "ink.safetensors",
                   "strength": 0.8, "strengthTwo": 0.5}, lora_2={"on": False, "lora": "off",
                   "strength": 1}, **BASE)}, "<lora:ink:0.5:0.8>"),
    ({"lora": node("Lora Loader Stack (rgthree)", lora_01="ink.safetensors", strength_01=0.8,
                   lora_02="None", strength_02=1, **BASE)}, "<lora:ink:0.8>"),
    ({"lora": node("LoraTagLoader", text="<lora:ink:0.8:0.5>", **BASE)}, "<lora:ink:0.5:0.8>"),
    ({"lora": node("LoraLoader", lora_name="ink.safetensors", strength_model=["p", 0],
                   strength_clip=["q", 0], **BASE), "p": node("PrimitiveFloat", value=0.35),
      "q": node("Reroute", **{"": ["r", 0]}), "r": node("FloatSlider", Number="0.5")},
     "<lora:ink:0.5:0.35>"),
    ({"lora": node("LoraLoader", lora_name=["n", 0], strength_model=1, strength_clip=1, **BASE),
      "n": node("Lora Selector", lora_name="ink.safetensors")}, "<lora:ink:1>"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "tags"), LOADERS)
def test_loras_are_read_from_whatever_node_applies_them(nodes: dict[str, Node], tags: str) -> None:
    found = read(graph(**nodes))
    assert (found.prompt, found.negative, found.problems) == (f"a cat {tags}", "bad", ())


def test_a_lora_counts_where_its_node_is_on_the_way() -> None:
    loader = LOADERS[0][0]["lora"]
    record = graph(lora=loader)
    for number in "67":
        record[number]["inputs"]["clip"] = ["4", 1]
    assert read(record).prompt == "a cat <lora:a/ink:0:0.8>"
    record = graph(lora=loader)
    record["3"]["inputs"]["model"] = ["4", 0]
    assert read(record).prompt == "a cat <lora:a/ink:0.5:0>"


def test_loras_of_a_later_pass_are_told() -> None:
    later = {**COMFY["3"]["inputs"], "model": ["l", 0], "positive": ["6", 0], "negative": ["7", 0],
             "latent_image": ["3", 0]}  # fmt: skip
    found = read(graph(l=LOADERS[0][0]["lora"], k=node("KSampler", **later)))
    assert found.prompt == "a cat"
    assert "after the first pass are not taken over: <lora:a/ink:0.5:0.8>" in str(found.problems)


def test_a_graph_without_a_known_sampler_is_told() -> None:
    found = read({"1": node("Magic", prompt="x"), "2": node("Magic"), "3": node("SaveImage")})
    assert found.problems == (
        "ComfyUI's graph has no sampler that is known here; its nodes are 2 times Magic, SaveImage",
    )


def test_a_weight_that_comes_from_an_unknown_node_is_told() -> None:
    loader = node("LoraLoader", lora_name="ink", strength_model=["p", 0], strength_clip=1, **BASE)
    odd = node("Weight of the day", low=0.1, high=0.9)
    found = read(graph(lora=loader, p=odd))
    assert found.prompt == "a cat <lora:ink:1>"
    assert found.problems[0] == (
        "strength_model of LoraLoader comes from Weight of the day, which is not known here; "
        "1 is taken"
    )


def test_a_tag_that_plain_nodes_do_not_read_counts_once_with_its_loader() -> None:
    loader = node("LoraLoader", lora_name="styles/neon.safetensors", strength_model=0.8,
                  strength_clip=0.8, **BASE)  # fmt: skip
    found = read(graph("a cat <lora:neon:0.8>", lora=loader))
    assert found.prompt == "a cat <lora:styles/neon:0.8>"
    assert found.problems == (
        "the LoRA tags in the text (neon) are left out: CLIPTextEncode does not read tags, the "
        "LoRAs are those of the loaders",
    )
    assert read(graph("a cat <lora:neon:0.8>")).prompt == "a cat"


def test_a_tag_that_its_node_reads_is_applied() -> None:
    encoder = node("ImpactWildcardEncode", populated_text="a cat <lora:neon:0.8>",
                   wildcard_text="a __pet__", **BASE)  # fmt: skip
    record = graph(**{"6": encoder})
    record["3"]["inputs"]["model"] = ["6", 0]
    assert read(record).prompt == "a cat <lora:neon:0.8>"


def test_one_lora_by_two_loaders_is_the_sum() -> None:
    first = node("LoraLoader", lora_name="ink", strength_model=0.5, strength_clip=0.5, **BASE)
    second = {**first, "inputs": {**first["inputs"], "model": ["one", 0]}}
    found = read(graph(one=first, lora=second))
    assert sum(tag.unet for tag in parse_prompt(found.prompt).loras) == 1.0
    assert "is applied 2 times" in found.problems[0]


CONTROL = node("ControlNetApplyAdvanced", strength=1, positive=["6", 0], negative=["7", 0],
               control_net=["cn", 0], image=["im", 0])  # fmt: skip
# nodes that are added, where the sampler's inputs come from instead, and what is told
FEATURES: list[tuple[dict[str, Node], dict[str, Any], str]] = [
    ({"c": CONTROL, "cn": node("ControlNetLoader", control_net_name="canny.pth"),
      "im": node("LoadImage", image="x.png")}, {"positive": ["c", 0], "negative": ["c", 1]},
     "ControlNet is not taken over (ControlNetApplyAdvanced, ControlNetLoader: canny.pth)"),
    ({"e": node("VAEEncode", pixels=["im", 0], vae=["4", 2]), "im": node("LoadImage", image="x")},
     {"latent_image": ["e", 0]}, "a picture that it began from is not taken over (VAEEncode)"),
    ({"e": node("VAEEncodeForInpaint", pixels=["im", 0], vae=["4", 2]),
      "im": node("LoadImage", image="x")}, {"latent_image": ["e", 0]}, "inpainting is not taken"),
    ({"g": node("GLIGENTextBoxApply", text="a hat", conditioning_to=["6", 0])},
     {"positive": ["g", 0]}, "GLIGEN is not taken over (GLIGENTextBoxApply)"),
    ({"h": node("HypernetworkLoader", hypernetwork_name="h.pt", strength=1, model=["4", 0])},
     {"model": ["h", 0]}, "a hypernetwork is not taken over (HypernetworkLoader: h.pt)"),
    ({"i": node("IPAdapterAdvanced", model=["4", 0], weight=1)}, {"model": ["i", 0]},
     "IP-Adapter is not taken over (IPAdapterAdvanced)"),
    ({"f": node("Sharpener of Z", model=["4", 0], power=3)}, {"model": ["f", 0]},
     "not known here, so that what they do to the picture is left out: Sharpener of Z"),
    ({"s": node("Lora of another sort", model=["4", 0], blob=["x"])}, {"model": ["s", 0]},
     "a LoRA loader of another kind is not taken over (Lora of another sort)"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "inputs", "told"), FEATURES)
def test_what_is_not_taken_over_is_named(
    nodes: dict[str, Node], inputs: dict[str, Any], told: str
) -> None:
    record = graph(**copy.deepcopy(nodes))
    record["3"]["inputs"] |= inputs
    found = read(record)
    assert found.prompt.startswith("a cat") and found.fields["Steps"] == "20"
    assert len(found.problems) == 1 and told in found.problems[0]


def test_what_comes_behind_the_first_pass_is_named() -> None:
    second = {**COMFY["3"]["inputs"], "steps": 9, "denoise": 0.4, "latent_image": ["u", 0]}
    refiner = node("CheckpointLoaderSimple", ckpt_name="xl_refiner.safetensors")
    record = graph(
        u=node("LatentUpscaleBy", samples=["3", 0], scale_by=1.5),
        k=node("KSampler", **{**second, "model": ["r", 0], "positive": ["6", 0],
                              "negative": ["7", 0]}),
        r=refiner, **{"8": node("VAEDecode", samples=["k", 0], vae=["4", 2])},
    )  # fmt: skip
    found = read(record)
    assert found.fields["Steps"] == "20" and "Denoising strength" not in found.fields
    assert found.problems == (
        "a second pass is not taken over: KSampler, 9 steps, denoise 0.4",
        "upscaling is not taken over (LatentUpscaleBy)",
        "a refiner is not taken over (CheckpointLoaderSimple: xl_refiner.safetensors)",
    )


def test_a_sampler_that_hands_its_work_to_a_refiner() -> None:
    record = graph()
    sampler = {**record["3"]["inputs"], "steps": 25, "start_at_step": 0, "end_at_step": 20}
    second = {**sampler, "start_at_step": 20, "end_at_step": 10_000, "latent_image": ["3", 0]}
    record |= {"3": node("KSamplerAdvanced", **sampler), "k": node("KSamplerAdvanced", **second)}
    assert read(record).problems == (
        "only steps 0 to 20 of 25 were taken there; here it is all",
        "a second pass is not taken over: KSamplerAdvanced, 25 steps, from step 20",
    )


def test_a_loader_of_everything() -> None:
    loader = node(
        "Efficient Loader", ckpt_name="m.safetensors", vae_name="Baked VAE", clip_skip=-2,
        lora_name="ink.safetensors", lora_model_strength=0.7, lora_clip_strength=0.6,
        positive="a cat", negative="bad", weight_interpretation="comfy", empty_latent_width=512,
        empty_latent_height=768,
    )  # fmt: skip
    sampler = {**COMFY["3"]["inputs"], "model": ["1", 0], "positive": ["1", 1],
               "negative": ["1", 2], "latent_image": ["1", 3]}  # fmt: skip
    found = read({"1": loader, "3": node("KSampler (Efficient)", **sampler)})
    assert (found.prompt, found.negative) == ("a cat <lora:ink:0.6:0.7>", "bad")
    assert found.fields["Size"] == "512x768" and found.fields["Clip skip"] == "2"
    assert found.fields["Model"] == "m" and "VAE" not in found.fields and not found.problems


def test_pictures_apart_are_told() -> None:
    other = graph(n=node("Note", text="x"))
    record = graph() | {f"b{key}": value for key, value in other.items()}
    for key, value in other.items():
        inputs = {n: [f"b{v[0]}", v[1]] if isinstance(v, list) else v
                  for n, v in value["inputs"].items()}  # fmt: skip
        record[f"b{key}"] = {**value, "inputs": inputs}
    assert read(record).problems == (
        "the graph makes 1 more pictures apart from this one; they are not read",
    )


def test_brackets_mean_nothing_in_comfyui() -> None:
    found = read(graph("a [blue] cat #1 \\[x\\] (big:1.2)"))
    assert found.prompt == "a \\[blue\\] cat \\#1 \\[x\\] (big:1.2)"


@pytest.mark.parametrize(("mode", "tags"), [(0, " <lora:ink:0.8>"), (4, ""), (2, "")])
def test_muted_and_bypassed_nodes_of_the_editor(mode: int, tags: str) -> None:
    def slot(name: str, kind: str, link: int) -> dict[str, Any]:
        return {"name": name, "type": kind, "link": link}

    record = {
        "nodes": [
            {"id": 1, "type": "CheckpointLoaderSimple", "widgets_values": ["m.ckpt"]},
            {"id": 2, "type": "LoraLoader", "mode": mode,
             "widgets_values": ["ink.safetensors", 0.8, 0.8],
             "inputs": [slot("model", "MODEL", 1), slot("clip", "CLIP", 2)]},
            {"id": 3, "type": "CLIPTextEncode", "widgets_values": ["a cat"],
             "inputs": [slot("clip", "CLIP", 4)]},
            {"id": 4, "type": "EmptyLatentImage", "widgets_values": [512, 512, 1]},
            {"id": 5, "type": "KSampler",
             "widgets_values": [7, "fixed", 20, 8, "euler", "normal", 1],
             "inputs": [slot("model", "MODEL", 3), slot("positive", "CONDITIONING", 5),
                        slot("negative", "CONDITIONING", 6), slot("latent_image", "LATENT", 7)]},
            {"id": 6, "type": "ConditioningZeroOut",
             "inputs": [slot("conditioning", "CONDITIONING", 8)]},
        ],
        "links": [[1, 1, 0, 2, 0, "MODEL"], [2, 1, 1, 2, 1, "CLIP"], [3, 2, 0, 5, 0, "MODEL"],
                  [4, 2, 1, 3, 0, "CLIP"], [5, 3, 0, 5, 1, "CONDITIONING"],
                  [6, 6, 0, 5, 2, "CONDITIONING"], [7, 4, 0, 5, 3, "LATENT"],
                  [8, 3, 0, 6, 0, "CONDITIONING"]],
    }  # fmt: skip
    found = read(record)
    assert found.prompt == f"a cat{tags}" and not found.problems
    assert found.fields.get("Model") == (None if mode == 2 else "m")
