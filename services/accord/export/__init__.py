"""Published adapters as folders that other tools read: full models for transformers, vLLM and GGUF converters, or PEFT adapters, each with a card."""
