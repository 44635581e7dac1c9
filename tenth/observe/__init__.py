"""For people: what the experts did and how fast a model runs, in numbers and pictures."""
