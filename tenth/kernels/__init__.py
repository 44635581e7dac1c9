"""Weight values and their formats, and the few operations that decide speed: contract, reference, native."""
