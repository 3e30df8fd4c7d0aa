"""Find the shape of a model that meets a budget: latency by structure, importance, a solver."""
