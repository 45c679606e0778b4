"""The engine worker: the child process that owns one model.

Three threads: *control* (main: commands, templates, tokenizing), *decode* (see ``decode``) and *heartbeat*. Started by
``host`` with one end of a socketpair as argument; ends when the other end closes, and is killed with its parent.
"""

import contextlib
import ctypes
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged.chat.templates import CHATML, ChatTemplate
from edged.core import Message, Role, Tool, ToolCall
from edged.engine.channel import Channel
from edged.engine.compiler import Compiler
from edged.engine.decode import Add, DecodeLoop, Drop, Threads
from edged.engine.embedding import EmbeddingLoop, tokenized
from edged.engine.embedding_runner import EmbeddingRunner
from edged.engine.form import Blueprint
from edged.engine.kv import KvPool
from edged.engine.limits import TimeLimitExceeded, time_limit
from edged.engine.protocol import (
    Cancel,
    Command,
    Embed,
    Form,
    Heartbeat,
    Load,
    Loaded,
    LoadFailed,
    LogLine,
    Params,
    Prepare,
    Prepared,
    Refused,
    Score,
    ScoreItem,
    SetThreads,
    Shutdown,
    Submit,
    Turn,
)
from edged.engine.runner import Runner, Vocabulary, capture_log, gpu_note
from edged.engine.scoring import option_sequences
from edged.engine.sequence import Sequence
from edged.engine.telling import told_apart
from edged.errors import ContextOverflow, EdgedError, TemplateRejected

HEARTBEAT_S = 1.0
TEMPLATE_TIME_LIMIT_S = 2.0
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"
_EXIT_FAULT = 70


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What Submit will need of what Prepare made."""

    tenant: str
    tokens: list[int]
    blueprint: Blueprint | None


class Worker:
    """The control thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._prompts: dict[str, _Prompt] = {}
        self._accept: Callable[[Embed], None] = _no_embedder
        self._command_started_s: float | None = None
        self._loop: DecodeLoop | EmbeddingLoop | None = None
        self._loading = False

    def run(self) -> None:
        """Serve commands until the daemon says so or is gone."""
        capture_log(self._log)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        while (command := self._channel.receive()) is not None and not isinstance(command, Shutdown):
            self._command_started_s = time.monotonic()
            self._serve(command)
            self._command_started_s = None

    def _log(self, level: str, text: str) -> None:
        if self._loop is None or not self._loop.is_aborting:
            self._channel.send(LogLine(level, text))

    def _serve(self, command: Command) -> None:  # noqa: C901 - one case for each command
        match command:
            case Load():
                (self._load if command.purpose == "chat" else self._load_embedder)(command)
            case Embed():
                self._embed(command)
            case Prepare():
                self._prepare(command)
            case Submit():
                self._submit(command)
            case Score():
                self._score(command)
            case Cancel(request_id):
                self._prompts.pop(request_id, None)
                if self._loop is not None:
                    self._loop.post(Drop(request_id))
            case SetThreads(count):
                if self._loop is not None:
                    self._loop.post(Threads(count))
            case Shutdown():
                pass

    @property
    def _loaded(self) -> DecodeLoop:
        if self._loop is None or isinstance(self._loop, EmbeddingLoop):
            raise RuntimeError("a command came before the model was loaded, or for another kind of model")
        return self._loop

    def _load_embedder(self, load: Load) -> None:
        started_s = time.monotonic()
        self._loading = True
        try:
            runner = EmbeddingRunner(load)
        except EdgedError as exc:
            self._channel.send(LoadFailed(exc.message))
            return
        finally:
            self._loading = False
        loop = self._loop = EmbeddingLoop(runner, self._channel.send)
        pairs = runner.pair_form()
        self._accept = lambda command: loop.accept(
            tokenized(command, runner.vocabulary, pairs, text_tokens=runner.text_tokens)
        )
        threading.Thread(target=_decode, args=(loop,), name="embedding", daemon=True).start()
        self._channel.send(
            Loaded(
                vocab_tokens=runner.vocabulary.size_tokens,
                context_train_tokens=runner.context_train_tokens,
                description=f"{runner.description}, {runner.pooling.name.lower()} pooling",
                load_s=time.monotonic() - started_s,
                notes=tuple(filter(None, (gpu_note(load),))),
                text_tokens=runner.text_tokens,
                vector_values=runner.values,
            )
        )

    def _embed(self, command: Embed) -> None:
        try:
            self._accept(command)
        except EdgedError as exc:
            self._channel.send(Refused(command.id, exc.code, exc.message, exc.param))

    def _load(self, load: Load) -> None:
        started_s = time.monotonic()
        self._loading = True
        try:
            runner = Runner(load, sequences=load.sequences)
            template, note = _template(runner.vocabulary)
        except EdgedError as exc:
            self._channel.send(LoadFailed(exc.message))
            return
        finally:
            self._loading = False
        self._template = template
        self._vocabulary = runner.vocabulary
        self._compiler = Compiler(runner.vocabulary, template.tool_format)
        shares, one_tenant = runner.shares_prefixes, load.one_tenant
        pool = KvPool(slots=load.sequences, cells=load.pool_tokens, shares=shares, one_tenant=one_tenant)
        self._pool = pool
        self._request_tokens = min(load.pool_tokens, load.context_tokens)
        self._loop = DecodeLoop(
            runner,
            pool,
            slots=load.slots,
            chunk_tokens=load.prefill_chunk_tokens,
            publish=self._channel.send,
            draft_rows=load.step_rows if load.drafts and shares else 0,
            output_rows=load.output_rows,
        )
        threading.Thread(target=_decode, args=(self._loop,), name="decode", daemon=True).start()
        self._channel.send(
            Loaded(
                vocab_tokens=runner.vocabulary.size_tokens,
                context_train_tokens=runner.context_train_tokens,
                description=runner.description,
                load_s=time.monotonic() - started_s,
                notes=tuple(filter(None, (note, gpu_note(load)))),
            )
        )

    def _prepare(self, command: Prepare) -> None:
        try:
            blueprint = self._compiler.compile(command.form) if command.form else None
            tokens = self._tokens(command)
        except EdgedError as exc:
            self._channel.send(Refused(command.id, exc.code, exc.message, exc.param))
            return
        if not tokens:
            self._channel.send(Refused(command.id, "invalid_request", "the prompt is empty"))
            return
        self._prompts[command.id] = _Prompt(command.tenant, tokens, blueprint)
        cached_tokens = self._pool.cached_prefix(tokens, command.tenant)
        self._channel.send(Prepared(command.id, len(tokens), cached_tokens, self._loaded.stats))

    def _tokens(self, command: Prepare | ScoreItem) -> list[int]:
        if command.tokens is not None:
            return list(command.tokens)
        if command.text is not None:
            return self._vocabulary.tokenize(command.text, add_special=True, parse_special=False)
        form = command.form if isinstance(command, Prepare) else None
        try:
            with time_limit(TEMPLATE_TIME_LIMIT_S):
                pieces = self._template.render([_message(turn) for turn in command.turns or ()], _tools(form))
        except TimeLimitExceeded as exc:
            raise TemplateRejected("the model's chat template takes too long on this conversation") from exc
        except (RecursionError, MemoryError) as exc:
            raise TemplateRejected("the model's chat template is too deep or too large on this conversation") from exc
        tokens: list[int] = []
        for piece in pieces:
            add_special = not tokens and self._vocabulary.add_bos and not piece.startswith(self._vocabulary.bos_text)
            tokens += self._vocabulary.tokenize(piece, add_special=add_special, parse_special=True)
        return tokens

    def _option_tokens(self, item: ScoreItem) -> list[list[int]]:
        options = [self._plain_tokens(text) for text in item.options]
        return told_apart(options) if item.told_apart else options

    def _plain_tokens(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=False) if text else []

    def _submit(self, command: Submit) -> None:
        prompt = self._prompts.pop(command.id, None)
        if prompt is None:
            return  # cancelled meanwhile
        tokens = prompt.tokens
        if len(tokens) + command.params.max_tokens > self._pool.cells:
            text = f"prompt and answer need more than the {self._pool.cells} tokens of the KV pool"
            self._channel.send(Refused(command.id, ContextOverflow.code, text))
            return
        now_s = time.monotonic()
        sequences = tuple(
            Sequence(
                id=command.id,
                choice=branch.choice,
                tenant=prompt.tenant,
                blueprint=prompt.blueprint,
                tokens=[*tokens, *branch.generated],
                prompt_tokens=len(tokens),
                params=_of_choice(command.params, branch.choice),
                submitted_s=now_s,
                background=command.background,
            )
            for branch in command.branches
        )
        self._loaded.post(Add(sequences))

    def _score(self, command: Score) -> None:
        try:
            items = [
                (
                    self._tokens(item) + self._plain_tokens(item.opening),
                    self._option_tokens(item),
                )
                for item in command.items
            ]
            sequences = option_sequences(command, items, limit_tokens=self._request_tokens, now_s=time.monotonic())
        except EdgedError as exc:
            self._channel.send(Refused(command.id, exc.code, exc.message, exc.param))
            return
        self._loaded.post(Add(sequences))

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            loop, started_s = self._loop, self._command_started_s
            control_s = 0.0 if started_s is None or self._loading else time.monotonic() - started_s
            stats = None if loop is None else loop.stats
            try:
                self._channel.send(Heartbeat(max(control_s, loop.step_s if loop else 0.0), stats))
            except OSError:
                return


def _decode(loop: DecodeLoop | EmbeddingLoop) -> None:
    """A decode thread that fails takes the process with it: the daemon restarts it from a known state."""
    if status := _end_of_thread(loop.run):
        os._exit(status)


def _end_of_thread(run: Callable[[], None]) -> int:
    """Run a thread's whole work; returns the process's exit status, with the reason on stderr where it is not 0."""
    try:
        run()
    except ConnectionError:
        return 0  # the daemon is gone
    except BaseException:  # noqa: BLE001 - one of the two places that may: the end of a thread
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        return _EXIT_FAULT
    return 0


def _no_embedder(_command: Embed) -> None:
    raise RuntimeError("texts to embed came to a model for chat")


def _template(vocabulary: Vocabulary) -> tuple[ChatTemplate, str | None]:
    """The file's own template; a note where another has to stand in."""
    compiled = functools.partial(
        ChatTemplate, bos=vocabulary.bos_text, eos=vocabulary.eos_text, control_texts=vocabulary.control_texts()
    )
    source = vocabulary.chat_template
    if source is None:
        return compiled(CHATML), "the model file has no chat template: ChatML is used"
    try:
        return compiled(source), None
    except TemplateRejected as exc:
        return compiled(CHATML), f"{exc.message}: ChatML is used instead"


def _of_choice(params: Params, choice: int) -> Params:
    """Each choice draws from its own stream of the request's seed, else all of them would be the same answer."""
    return params if params.seed is None else msgspec.structs.replace(params, seed=params.seed + choice)


def _message(turn: Turn) -> Message:
    calls = tuple(ToolCall(*call) for call in turn.tool_calls)
    return Message(Role(turn.role), turn.text, turn.name, calls, turn.tool_call_id)


def _tools(form: Form | None) -> list[Tool]:
    return [Tool(row.name, row.description, row.parameters_json, row.strict) for row in form.tools] if form else []


def _die_with_parent() -> None:
    """The kernel kills this process when its parent dies (prctl(2)); a parent already gone is noticed by EOF."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prefer_to_be_killed() -> None:
    """Under memory pressure the kernel takes the worker before the daemon (proc(5))."""
    with contextlib.suppress(OSError):  # not allowed in some containers; the unit file says it too
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def main() -> None:
    """Run on the socket whose descriptor is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    _prefer_to_be_killed()
    worker = Worker(Channel(socket.socket(fileno=int(sys.argv[1]))))
    os._exit(_end_of_thread(worker.run))  # the decode thread may be inside a step; there is nothing to flush


if __name__ == "__main__":
    main()
