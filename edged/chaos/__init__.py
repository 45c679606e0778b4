"""A storm against a real daemon, and the eight guarantees checked from what it left behind. See docs/chaos.md."""
