"""Files to tensors: safetensors, GGUF, the packed form, names, hub, tokenizer, chat template."""
