"""Base models, prompt encoding, LoRA adapters and scalar heads. Needs torch; import the modules, not this package."""
