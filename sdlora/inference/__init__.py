"""Inference: from a request to images, by an open model; `sdlora.inference.engine` is the entry.

`plan` is what each image of a request is made of, `lora_selection` finds the LoRAs that prompts
name, `conditioning` encodes their texts over the steps, `sampling` denoises, `image_pipeline` does
one after the other, and `image_writer` saves the images with their metadata.
"""
