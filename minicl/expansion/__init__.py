"""Methods that give each task something new: masks over a network that stands still, weights, units, networks."""
