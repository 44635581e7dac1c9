"""For people: what the experts did, in numbers and pictures."""
