"""What other programs write into pictures, after their own documentation, sources and issues."""

from typing import Any

# A1111 1.5, with two LoRAs (hako-mikan/sd-webui-regional-prompter issue 196, shortened).
A1111 = """2people, <lora:satorugojo-10:0.8> BREAK <lora:SuguruGetoYoung_DG:0.7>, standing
in a street
Negative prompt: (worst quality:1.4), blurry
two heads
Steps: 37, Sampler: Euler, CFG scale: 7, Seed: 57707383, Size: 568x512, Model hash: 00a41efe7f, \
Model: UniMiX.v4, Denoising strength: 0.3, Clip skip: 2, Hires upscale: 2, Hires steps: 27, \
Hires upscaler: 4x-UltraSharp, Lora hashes: "satorugojo-10: bab8c95a8b1b, SuguruGetoYoung_DG: \
14121bf593ec", Version: v1.5.1"""

# InvokeAI 3.3, the second LoRA in the form of 4.x and later.
INVOKE: dict[str, Any] = {
    "app_version": "3.3.0post3", "generation_mode": "txt2img", "positive_prompt": "landscape",
    "negative_prompt": "low quality", "width": 768, "height": 432, "seed": 356120443,
    "rand_device": "cpu", "cfg_scale": 7.5, "steps": 50, "scheduler": "dpmpp_2m_sde_k",
    "clip_skip": 0, "model": {"model_name": "amixx", "base_model": "sd-1", "model_type": "main"},
    "controlnets": [], "loras": [
        {"lora": {"model_name": "ink", "base_model": "sd-1"}, "weight": 0.75},
        {"model": {"key": "k", "hash": "blake3:1", "name": "fur", "base": "sd-1"}, "weight": -1},
    ],
}  # fmt: skip
# docs/Image Metadata Format.md of SwarmUI, with LoRAs
SWARM: dict[str, Any] = {
    "sui_image_params": {
        "prompt": "a photo of a cat <lora:hat:0.5>", "model": "Official/sd_xl_base_1.0",
        "seed": 1, "steps": "20", "cfgscale": 7.0, "aspectratio": "1:1", "width": 1024,
        "height": 768, "automaticvae": True, "negativeprompt": "dog", "swarm_version": "0.9.3.1",
        "sampler": "euler", "scheduler": "karras", "loras": ["ink/fine", "hat"],
        "loraweights": "0.33,0.5", "loratencweights": ["0.1"],
    },
    "sui_extra_data": {"date": "2024-11-13"},
}  # fmt: skip
# modules/meta_parser.py of Fooocus 2.5, FooocusMetadataParser
FOOOCUS: dict[str, Any] = {
    "adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689", "clip_skip": 2, "full_negative_prompt": ["ugly"],
    "full_prompt": ["a cat", "cinematic"], "guidance_scale": 4, "lora_combined_1": "ink : 0.1",
    "loras": [["sd_xl_offset.safetensors", 0.5, "4852686128"]], "metadata_scheme": "fooocus",
    "negative_prompt": "ugly", "performance": "Speed", "prompt": "a cat",
    "resolution": "(1152, 896)", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras",
    "seed": "5318", "sharpness": 2, "steps": 30, "version": "Fooocus v2.5.0",
}  # fmt: skip
# ComfyUI's own default workflow, with a LoRA, a clip skip and a second, weaker pass.
COMFY: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 156680208700286, "steps": 20, "cfg": 8, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 1, "model": ["10", 0], "positive": ["6", 0],
        "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.ckpt"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "scenery", "clip": ["12", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["13", 0], "clip": ["12", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "sub\\ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5,
        "model": ["11", 0], "clip": ["11", 1]}},
    "11": {"class_type": "Power Lora Loader (rgthree)", "inputs": {
        "lora_1": {"on": True, "lora": "fur.safetensors", "strength": 0.3},
        "lora_2": {"on": False, "lora": "off.safetensors", "strength": 1},
        "model": ["4", 0], "clip": ["4", 1]}},
    "12": {"class_type": "CLIPSetLastLayer", "inputs": {
        "stop_at_clip_layer": -2, "clip": ["10", 1]}},
    "13": {"class_type": "PrimitiveString", "inputs": {"value": "text, watermark"}},
    "20": {"class_type": "KSampler", "inputs": {
        "seed": 2, "steps": 9, "cfg": 3, "denoise": 0.4, "model": ["10", 0],
        "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["3", 0]}},
}  # fmt: skip
# ComfyUI's example for FLUX: no sampler node of the usual form
COMFY_FLUX: dict[str, Any] = {
    "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 1024}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["11", 0]}},
    "12": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
    "13": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["25", 0], "guider": ["22", 0], "sampler": ["16", 0], "sigmas": ["17", 0],
        "latent_image": ["5", 0]}},
    "16": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "17": {"class_type": "BasicScheduler", "inputs": {
        "scheduler": "simple", "steps": 20, "denoise": 1, "model": ["12", 0]}},
    "22": {"class_type": "BasicGuider", "inputs": {"model": ["30", 0], "conditioning": ["26", 0]}},
    "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": 219670278747233}},
    "26": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
    "30": {"class_type": "LoraLoaderModelOnly", "inputs": {
        "lora_name": "fox.safetensors", "strength_model": 0.9, "model": ["12", 0]}},
}  # fmt: skip
# the editor's graph, which a picture has beside or instead of the one that ran
WORKFLOW: dict[str, Any] = {
    "nodes": [
        {"id": 3, "type": "KSampler", "inputs": [
            {"name": "model", "link": 1}, {"name": "positive", "link": 4},
            {"name": "negative", "link": 6}, {"name": "latent_image", "link": 2}],
         "widgets_values": [7, "randomize", 20, 8, "euler", "normal", 1]},
        {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["v1-5.safetensors"]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 512, 1]},
        {"id": 6, "type": "CLIPTextEncode", "inputs": [{"name": "clip", "link": 3}],
         "widgets_values": ["a bottle"]},
        {"id": 8, "type": "ConditioningZeroOut", "inputs": [{"name": "conditioning", "link": 5}]},
    ],
    "links": [[1, 4, 0, 3, 0, "MODEL"], [2, 5, 0, 3, 3, "LATENT"], [3, 4, 1, 6, 0, "CLIP"],
              [4, 6, 0, 3, 1, "CONDITIONING"], [5, 6, 0, 8, 0, "CONDITIONING"],
              [6, 8, 0, 3, 2, "CONDITIONING"]],
    "version": 0.4,
}  # fmt: skip
# NovelAI 3: the chunk Comment, beside which stand Description, Software and Source
NOVELAI: dict[str, Any] = {
    "prompt": "{girl}, [rain], #1", "steps": 28, "height": 1216, "width": 832, "scale": 5.5,
    "uncond_scale": 1.0, "cfg_rescale": 0.2, "seed": 3812345678, "n_samples": 1,
    "noise_schedule": "karras", "sampler": "k_euler_ancestral", "strength": 0.7, "noise": 0.2,
    "sm": False, "uc": "{bad}", "request_type": "PromptGenerateRequest",
    "reference_strength_multiple": [],
}  # fmt: skip
# InvokeAI 2.3: the chunk sd-metadata
INVOKE_2: dict[str, Any] = {
    "model": "stable diffusion", "model_weights": "analog-1.0", "model_hash": "bcc6c2d0a1b2",
    "app_id": "invoke-ai/InvokeAI", "app_version": "2.3.0", "image": {
        "prompt": [{"prompt": "a cat++ [ugly, (bad)1.2]", "weight": 1}], "steps": 50,
        "cfg_scale": 7.5, "threshold": 0, "perlin": 0.1, "height": 512, "width": 768,
        "seed": 1234, "seamless": False, "hires_fix": False, "type": "txt2img",
        "postprocessing": None, "sampler": "k_euler_a", "variations": [],
    },
}  # fmt: skip
DREAM = '"a cat++ [ugly]" -s 50 -S 1234 -W 768 -H 512 -C 7.5 -A k_euler_a'
