"""How routers choose and what they decided: the rule, the record, its measures (balance, entropy, drift)."""
