"""The plan and its steps: Helm, overlay, seed, check."""
