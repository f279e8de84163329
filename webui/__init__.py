"""The browser page: request guards with a Gradio app inside; it needs no device."""

import os

# Read by Gradio and huggingface_hub when they are imported: no telemetry.
os.environ |= {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
