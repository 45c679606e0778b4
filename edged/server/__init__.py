"""The HTTP door: one module per public API, all of them making the same internal `Request`."""
