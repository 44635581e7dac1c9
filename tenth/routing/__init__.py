"""What the router decided: the record of it, and its measures (balance, entropy)."""
