"""The local backend: one worker process per model, continuous batching over llama.cpp's low-level API."""
