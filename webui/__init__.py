"""The browser page: guards, a Gradio app inside them, and nothing that needs a device."""
