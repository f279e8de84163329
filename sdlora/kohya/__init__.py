"""Settings of kohya's programs: sd-scripts' TOML and kohya_ss' JSON presets read, TOML written.

Names, meanings and defaults after kohya-ss/sd-scripts 0.10 (`train_network.py`, `library/
train_util.py`, `library/config_util.py`, `networks/lora.py`) and bmaltais/kohya_ss 26
(`kohya_gui/lora_gui.py`). A key that is left out means what it means there, not what it means here.
"""

from sdlora.kohya.reader import Imported, read
from sdlora.kohya.writer import write

__all__ = ["Imported", "read", "write"]
