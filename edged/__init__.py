"""edged: local answers from small GGUF models, the cloud only when it must."""

__version__ = "0.1.0"
