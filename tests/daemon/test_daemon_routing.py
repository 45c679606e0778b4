"""Tasks, conversations, forecasts and checkpoints in a running daemon: what a client and an operator see of them."""

from daemon_builders import config_text, daemon, scripted_cloud

TASK = """
[[route.task]]
name = "mathematics"
local = ""

[[route.task]]
name = "code"
thresholds = { confidence = 1.0 }
"""
PROMPT = "What is the capital of France?"


def test_queries_go_where_their_kind_and_their_conversation_belong(tmp_path, model_path):
    """A sum to the cloud, chat to the box; what the box was not trusted with stays in the cloud, until it fails."""
    text = config_text(model=model_path, cloud="{cloud}", thresholds=TASK)
    with scripted_cloud() as cloud, daemon(tmp_path, text.replace("{cloud}", cloud.base_url)) as box:
        box.wait_ready()

        _, headers, answer = box.ask("What is 17 * 23?", max_tokens=16)
        assert headers["x-edged-served-by"] == "cloud"
        assert (answer["edged"]["task"], answer["edged"]["task_source"]) == ("mathematics", "detected")

        _, headers, answer = box.ask(PROMPT, max_tokens=16)
        assert headers["x-edged-reason"] == "within_budget"
        assert answer["edged"]["task"] == "chat"
        _, headers, answer = box.ask(PROMPT, max_tokens=16)
        assert answer["edged"]["timings"]["predicted_ttft_s"] > 0
        assert abs(answer["edged"]["timings"]["prediction_error_s"]) < 10
        local_id = headers["x-edged-request-id"]

        code = "Write a python function that adds two numbers."
        _, headers, answer = box.ask(code, max_tokens=64)
        assert headers["x-edged-reason"] == "low_confidence"
        draft, served = answer["edged"]["attempts"]
        assert draft["wasted_tokens"] == draft["completion_tokens"] < 64
        assert draft["saved_tokens"] == 64 - draft["wasted_tokens"]
        assert (served["wasted_tokens"], served["saved_tokens"]) == (0, 0)
        doubted_id = headers["x-edged-request-id"]

        said = answer["choices"][0]["message"]["content"]
        follow_up = [
            {"role": "user", "content": code},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "Thank you. And what does it print?"},
        ]
        _, headers, answer = box.ask("", messages=follow_up, max_tokens=16)
        assert (headers["x-edged-served-by"], headers["x-edged-reason"]) == ("cloud", "kept_author")
        assert answer["edged"]["task"] == "code"
        _, headers, _ = box.ask("", messages=follow_up, max_tokens=16, edged={"locality": "local_only"})
        assert (headers["x-edged-served-by"], headers["x-edged-reason"]) == ("local", "private")

        box.split(6)
        told = box.command("explain", doubted_id).stdout
        assert "task code, detected" in told
        assert "checkpoint: go cloud, because low_confidence" in told
        assert "the cloud's first token was expected after" in told
        assert "more were saved by stopping early" in told
        assert "than predicted" in box.command("explain", local_id).stdout
        _, metrics = box.get("/metrics")
        assert "edged_ttft_prediction_error_seconds_count" in metrics
        assert "edged_saved_tokens_total" in metrics
        assert "edged_host_speed 1.0" in metrics
        assert "Traceback" not in box.log
        assert box.end() == 0
