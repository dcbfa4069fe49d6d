"""The Hub: the only package that imports huggingface_hub, and only inside its functions."""
