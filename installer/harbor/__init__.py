"""Harbor's own API."""
