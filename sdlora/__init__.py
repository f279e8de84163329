"""Train LoRAs for Stable Diffusion from folders of captioned pictures, and generate images with them."""

__version__ = "0.1.0"
