"""The browser page: guards, a Gradio app inside them, and nothing that needs a device."""

import os

# Read by Gradio and the hub when they are imported: nothing here tells anybody that it runs.
os.environ |= {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
