"""The network: config, rope, attention, router, experts, decoder."""
