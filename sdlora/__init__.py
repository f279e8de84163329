"""Train LoRAs for Stable Diffusion from captioned pictures, and generate images with them."""

from __future__ import annotations

import os
from pathlib import Path

# Read by the libraries when they are imported: no code from model folders, and no warnings about
# what is not installed because it is not needed.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.2.0"

# A checkout is run by launch.py; elsewhere this is a package that pip installed, with a script.
IS_CHECKOUT = Path(__file__).parent.with_name("launch.py").is_file()
PROGRAM = "python launch.py" if IS_CHECKOUT else "sdlora"
