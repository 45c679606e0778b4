"""Labels from the task's route's upstreams, asked through the running daemon: its budgets, labels and ledger hold."""

import asyncio
import http.client
import json
from dataclasses import dataclass, field
from typing import Any

from edged.calibrate.local import MAX_ANSWER_TOKENS
from edged.calibrate.run import LabelsEnded
from edged.config import Config, TaskFile, resolve_secret
from edged.errors import ConfigError, UpstreamUnavailable

TIMEOUT_S = 120.0
_TRIES = 3
_PAUSE_S = 1.0
_MOST_PAUSE_S = 30.0
_OK, _BUSY = 200, (429, 502, 503, 504)
_MOST_BYTES = 4 * 1024 * 1024
_CHOSEN = "answer"


@dataclass(slots=True)
class DaemonCloud:
    """One daemon, asked to have the cloud answer. ``asked`` counts the answers that came."""

    config: Config
    key: str | None = field(repr=False)
    asked: int = 0

    def check(self) -> None:
        """Raises: ConfigError where no daemon answers."""
        listen = self.config.server.listen
        try:
            self._exchange("GET", "/health/live", None)
        except OSError as exc:
            text = f"--from-cloud asks through the running daemon, whose budgets then hold; none answers at {listen}"
            raise ConfigError(text) from exc

    async def option(self, task: TaskFile, text: str) -> int | None:
        """The chosen option's place; None where the cloud chose none of them. Raises: LabelsEnded."""
        schema = {
            "type": "object",
            "properties": {_CHOSEN: {"enum": list(task.option_names)}},
            "required": [_CHOSEN],
            "additionalProperties": False,
        }
        said = await self._answered(_body(task, _options_prompt(task), text, schema, wrap=True))
        try:
            chosen = json.loads(said or "")[_CHOSEN]
            return task.option_names.index(chosen)
        except (ValueError, KeyError, TypeError, IndexError):
            return None

    async def answer(self, task: TaskFile, text: str) -> str | None:
        """Raises: LabelsEnded."""
        schema = None if task.answer_schema is None else json.loads(task.answer_schema)
        return await self._answered(_body(task, task.instructions, text, schema, wrap=False))

    async def _answered(self, body: dict[str, Any]) -> str | None:
        """What the cloud said; waits where it is busy. Raises: LabelsEnded where it says no more."""
        status, wait_s = 0, _PAUSE_S
        answer: dict[str, Any] = {}
        for left in reversed(range(_TRIES)):
            try:
                status, answer, wait_s = await asyncio.to_thread(self._exchange, "POST", "/v1/chat/completions", body)
            except OSError as exc:
                raise LabelsEnded(f"the daemon does not answer: {exc.strerror or exc}") from exc
            if status not in _BUSY or _code(answer) == "budget_exhausted" or not left:
                break
            await asyncio.sleep(min(wait_s, _MOST_PAUSE_S))
        if status != _OK:
            raise LabelsEnded(_message(answer, status))
        if _said(answer.get("edged"), "served_by") != "cloud":
            raise LabelsEnded("the daemon answered by itself where the cloud was asked")
        self.asked += 1
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return None
        return content if isinstance(content, str) else None

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any], float]:
        """One request: status, JSON object, and how long it asks to be left alone. Raises: OSError."""
        server = self.config.server
        connection = http.client.HTTPConnection(server.host, server.port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read(_MOST_BYTES)
            retry_after = response.getheader("Retry-After", "")
        except http.client.HTTPException as exc:
            raise UpstreamUnavailable(f"the daemon's answer is no HTTP: {exc!r}", upstream="") from exc
        finally:
            connection.close()
        try:
            answer = json.loads(data)
        except ValueError:
            answer = {}
        wait_s = float(retry_after) if retry_after.isdecimal() else _PAUSE_S
        return response.status, answer if isinstance(answer, dict) else {}, wait_s


def daemon_cloud(config: Config) -> DaemonCloud:
    """Speaks to the daemon that this config is of, with its first key. Raises: ConfigError."""
    references = config.server.api_keys
    key = resolve_secret(references[0]).reveal() if references else None
    return DaemonCloud(config, key)


def _body(task: TaskFile, instructions: str, text: str, schema: dict[str, Any] | None, *, wrap: bool) -> dict[str, Any]:
    messages = [{"role": "system", "content": instructions}] if instructions else []
    for example in task.examples:
        said = json.dumps({_CHOSEN: example.answer}) if wrap else example.answer
        messages += [{"role": "user", "content": example.input}, {"role": "assistant", "content": said}]
    body: dict[str, Any] = {
        "model": task.route,
        "messages": [*messages, {"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": MAX_ANSWER_TOKENS,
        "edged": {"locality": "cloud_only"},
    }
    if schema is not None:
        json_schema = {"name": task.name, "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return body


def _options_prompt(task: TaskFile) -> str:
    lines = [f"- {o.name}: {o.description}" if o.description else f"- {o.name}" for o in task.options]
    asked = task.instructions or f"Which {task.answer_word.lower()} belongs to the {task.input_word.lower()}?"
    return "\n".join([asked, "Answer with one of these options:", *lines])


def _code(answer: dict[str, Any]) -> str | None:
    return _said(answer.get("error"), "code")


def _message(answer: dict[str, Any], status: int) -> str:
    return _said(answer.get("error"), "message") or f"the daemon answered with status {status}"


def _said(part: object, name: str) -> str | None:
    value = part.get(name) if isinstance(part, dict) else None
    return value if isinstance(value, str) else None
