"""``[[model]]``: local models."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edged.config.section import Name, Seconds, Section


class SamplingDefaults(Section):
    """``[model.sampling]``: used where the request asks for nothing else."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=40, ge=0)
    min_p: float = Field(default=0.05, ge=0, le=1)
    repeat_penalty: float = Field(default=1.0, gt=0, le=2)


class ModelConfig(Section):
    """``[[model]]``: one local model, one worker process."""

    name: Name
    catalogue: Name | None = None
    file: Path | None = None
    purpose: Literal["chat", "embed", "rerank"] = "chat"
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    context_tokens: int = Field(default=4096, ge=16, le=1_048_576)
    slots: int = Field(default=4, ge=1, le=64)
    kv_tokens: int | None = Field(default=None, ge=16)
    kv_format: Literal["f16", "q8_0"] = "f16"
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    gpu_layers: int = Field(default=0, ge=-1)
    main_gpu: int = Field(default=0, ge=0)
    offload_kv: bool = True
    prefill_chunk_tokens: int = Field(default=256, ge=8, le=8192)
    max_output_tokens: int = Field(default=2048, ge=1)
    one_tenant: bool = False
    drafts: bool = True
    load: Literal["start", "first_use"] = "start"
    keep_loaded_s: float = Field(default=0, ge=0, le=31_536_000)
    min_loaded_s: float = Field(default=30, ge=0, le=86_400)
    load_timeout_s: Seconds = 300.0
    heartbeat_timeout_s: Seconds = 5.0
    step_timeout_s: Seconds = 60.0
    sampling: SamplingDefaults = SamplingDefaults()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.catalogue is None) == (self.file is None):
            raise ValueError("needs exactly one of catalogue and file")
        return self

    @model_validator(mode="after")
    def _pooling_is_for_embeddings(self) -> Self:
        if self.pooling != "auto" and self.purpose != "embed":
            raise ValueError(f'pooling = "{self.pooling}" needs purpose = "embed", it is "{self.purpose}"')
        return self

    @property
    def pool_tokens(self) -> int:
        """Cells of the KV pool: what ``kv_tokens`` says, else full contexts for five of eight slots.

        Cells are memory whether used or not, and few requests fill their context; those that do wait for each other.
        Texts to embed or rank leave nothing behind: there is room for one of them, or for many short ones.
        """
        if self.purpose != "chat":
            return self.context_tokens
        return self.kv_tokens or self.context_tokens * -(-5 * self.slots // 8)
