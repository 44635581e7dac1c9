"""Files to tensors: safetensors, GGUF, names, hub, tokenizer, chat template."""
