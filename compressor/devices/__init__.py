"""Remote devices: bundles are copied to them over SSH, measured there, and the results fetched."""
