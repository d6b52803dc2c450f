"""Online training whose rollouts a server writes: one that plays an engine, by the local decoder's draws."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import deciding, load_config
from equipoise.data.io import read_records, write_records
from equipoise.errors import ConfigError, RunStoppedError
from equipoise.generation.decoding import decode
from equipoise.generation.endpoint import request_seed
from equipoise.generation.local import LocalGenerator, load_generator
from equipoise.lineage import Step, produce
from equipoise.models.backbone import load_tokenizer
from equipoise.models.chat import chat_ids, decode_response
from equipoise.policy.experience import seed_of
from equipoise.policy.scoring import Scoring, Signals
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig
from equipoise.policy.train import train_group_lag, train_ppo_lag
from equipoise.protocols import Sampling
from equipoise.records import Message, Prompt

UPDATES, SAMPLES = 2, 3
Body = dict[str, Any]
Draw = tuple[int, str, int]
"""Seed of the sampling, id of the prompt and number of the sample, which the local decoder draws by."""


class EngineServer:
    """What the server does; tests change it."""

    def __init__(self, draws: Mapping[int, Draw]) -> None:
        """Take the draws by the seeds of requests."""
        self.draws = draws
        self.calls: list[str] = []
        """Loads and unloads by name, and `write NAME`, in order."""
        self.bodies: list[Body] = []
        """Of requests for responses."""
        self.adapters: dict[str, LocalGenerator] = {}
        self.refusal: tuple[int, str] | None = None
        """Of every request to load or unload."""
        self.lost_replies = 0
        """Loads that are done, and said to have failed."""
        self.dies_after: int | None = None
        """Responses until nothing is answered any more."""
        self.changed: Callable[[Body], Body] = lambda choice: choice
        self.url = ""
        self._lock = threading.Lock()

    def answer(self, path: str, body: Body) -> tuple[int, str]:
        """Return status and text of a reply."""
        with self._lock:
            if self.dies_after is not None and len(self.bodies) >= self.dies_after:
                return 503, "gone"
            if path == "/v1/completions":
                return self._write(body)
            return self._load(path, body) if self.refusal is None else self.refusal

    def _load(self, path: str, body: Body) -> tuple[int, str]:
        name = body["lora_name"]
        self.calls.append(f"{path.removeprefix('/v1/').removesuffix('_lora_adapter')} {name}")
        if path == "/v1/unload_lora_adapter":
            del self.adapters[name]
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        if name in self.adapters:
            said = f"The lora adapter '{name}' has already been loaded. ..."
            return 400, json.dumps({"error": {"message": said}})
        self.adapters[name] = load_generator(body["lora_path"], device="cpu")
        if self.lost_replies:
            self.lost_replies -= 1
            return 503, ""
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _write(self, body: Body) -> tuple[int, str]:
        self.bodies.append(body)
        if self.calls[-1] != (what := f"write {body['model']}"):
            self.calls.append(what)
        seed, key, sample = self.draws[body["seed"]]
        generator = self.adapters[body["model"]]
        sampling = Sampling(body["max_tokens"], body["temperature"], body["top_p"], sample + 1, seed)
        (written,) = decode(
            generator.model,
            [body["prompt"]],
            [key],
            sampling,
            stop_ids=frozenset(body["stop_token_ids"]),
            pad_id=0,
            with_logps=True,
        )
        ids, stop, logps = written[sample]
        whole = ids if stop is None else [*ids, stop]
        choice = {
            "text": decode_response(generator.tokenizer, ids),
            "finish_reason": "length" if stop is None else "stop",
            "token_ids": whole,
            "logprobs": {"tokens": [f"token_id:{i}" for i in whole], "token_logprobs": list(logps)},
        }
        return 200, json.dumps({"choices": [self.changed(choice)]})


@pytest.fixture
def server(make_config: Any, serve_json: Callable[..., Any]) -> Iterator[EngineServer]:
    """Return an engine that knows the local decoder's draw behind each request's seed."""
    seeds = [seed_of(0, update) for update in range(UPDATES)]
    ids = [prompt.id for prompt in read_records(make_config("group").prompts[0], Prompt)]
    draws = [(seed, name, k) for seed in seeds for name in ids for k in range(SAMPLES)]
    state = EngineServer({request_seed(*draw): draw for draw in draws})

    def reply(asked: Any) -> tuple[int, bytes]:
        status, text = state.answer(asked.path, asked.body)
        return status, text.encode()

    with serve_json(reply) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        yield state
        http.shutdown()


def train(config: OnlineConfig, out: Path, scoring: Scoring) -> None:
    def build(config: OnlineConfig, run: Any) -> None:
        if isinstance(config, PpoLagConfig):
            train_ppo_lag(config, run, lambda *_: scoring)
        elif isinstance(config, GroupLagConfig):
            train_group_lag(config, run, lambda *_: scoring)

    produce(out, Step("train.test", 1, build, config=type(config)), config)


def unasked(_: object) -> Signals:
    """A scoring of runs that stop before it."""
    raise AssertionError


def lines_of(out: Path, name: str = "log") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text("utf-8").splitlines()]


def learned(out: Path) -> list[dict[str, Any]]:
    """The log without its clocks and what only says how near the engine is."""
    apart = {"seconds", "drift", "engine_gap"}
    return [{k: v for k, v in line.items() if k not in apart} for line in lines_of(out)]


def with_engine(
    make_config: Any, server: EngineServer, folder: Path, kind: str = "group", **more: Any
) -> Any:
    engine = {"url": server.url, "adapter_dir": folder, "tries": 2, "first_wait_seconds": 0.01}
    rollout = {"engine": engine, **more.pop("rollout", {})}
    return make_config(kind, **{"updates": UPDATES, "rollout": rollout, **more})


@pytest.mark.parametrize("kind", ["group", "ppo"])
def test_a_run_through_an_engine_is_the_run_of_the_local_decoder(
    kind: str, server: EngineServer, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    train(make_config(kind, updates=UPDATES), tmp_path / "local", arbitrary)
    shared = tmp_path / "shared"
    train(with_engine(make_config, server, shared, kind), tmp_path / "served", arbitrary)
    assert learned(tmp_path / "served") == learned(tmp_path / "local")
    assert lines_of(tmp_path / "served", "samples") == lines_of(tmp_path / "local", "samples")
    assert all(max(line["drift"], line["engine_gap"]) < 1e-4 for line in lines_of(tmp_path / "served"))
    names = [call.split()[1] for call in server.calls[::3]]
    assert server.calls == [f"{what} {name}" for name in names for what in ("load", "write", "unload")]
    assert [re.fullmatch(r"actor-(\d)-[0-9a-f]{16}", name)[1] for name in names] == ["1", "2"]  # type: ignore[index]
    assert not list(shared.iterdir())


def test_what_is_asked_leaves_nothing_to_the_servers_defaults(
    server: EngineServer, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    config = with_engine(make_config, server, tmp_path, updates=1)
    turns = [Message(role=role, content="of bread") for role in ("user", "assistant", "user")]
    words = ("flour", "water", "salt", "yeast")
    write_records(config.prompts[0], [Prompt(id=word, prompt=(*turns, *turns[1:])) for word in words])
    train(config, tmp_path / "out", arbitrary)
    chat = chat_ids(load_tokenizer(config.roles.policy), [turn.model_dump() for turn in (*turns, *turns[1:])])
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies) == 12
    for body in server.bodies:
        said = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens")}
        assert said == {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "max_tokens": 10}
        assert {body[f"{name}_penalty"] for name in ("presence", "frequency")} == {0.0}
        assert body["repetition_penalty"] == 1.0
        assert 2 in body["stop_token_ids"]
        assert body["prompt"] == chat


def test_a_server_without_token_ids_is_read_in_the_policys_tokens(
    server: EngineServer,
    make_config: Any,
    arbitrary: Scoring,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One step per rollout, which otherwise takes what was drawn: the actor is asked."""
    server.changed = lambda choice: {name: choice[name] for name in ("text", "finish_reason")}
    more: dict[str, Any] = {"updates": 2, "optim": {"lr": 0.01, "minibatches": 1}}
    train(with_engine(make_config, server, tmp_path, **more), tmp_path / "out", arbitrary)
    lines = lines_of(tmp_path / "out")
    assert [line["drift"] for line in lines] == [None, None]
    assert all(line["entropy"] > 0 and "engine_gap" not in line for line in lines)
    assert capsys.readouterr().err.count("gives no token ids; its texts are read") == 1


def test_tokens_named_by_their_ids_will_do(
    server: EngineServer, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    server.changed = lambda choice: {**choice, "token_ids": None}
    train(make_config("group", updates=1), tmp_path / "local", arbitrary)
    train(with_engine(make_config, server, tmp_path, updates=1), tmp_path / "served", arbitrary)
    assert learned(tmp_path / "served") == learned(tmp_path / "local")


def test_a_server_that_dies_stops_the_run_which_then_goes_on(
    server: EngineServer, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    config = with_engine(make_config, server, shared)
    train(config, tmp_path / "whole", arbitrary)
    server.bodies.clear()
    server.dies_after = 17  # of 24, in the second rollout
    with pytest.raises(RunStoppedError, match=r"127\.0\.0\.1:\d+/v1: '\w+#\d': status 503 \(2 tries\)$"):
        train(config, tmp_path / "broken", arbitrary)
    assert [f.name for f in (tmp_path / "broken" / "scratch" / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert not list(shared.iterdir())
    server.bodies.clear()
    server.calls.clear()
    server.dies_after = None
    train(config, tmp_path / "broken", arbitrary)
    assert [call.split("-")[0] for call in server.calls] == ["load actor", "write actor", "unload actor"]
    assert learned(tmp_path / "broken") == learned(tmp_path / "whole")


def test_a_load_whose_reply_is_lost_is_not_done_twice(
    server: EngineServer, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    server.lost_replies = 1
    train(with_engine(make_config, server, tmp_path, updates=1), tmp_path / "out", arbitrary)
    said = [call.split()[0] for call in server.calls]
    assert said == ["load", "load", "write", "unload"]


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((404, {"detail": "Not Found"}), "expected vLLM with .* VLLM_ALLOW_RUNTIME_LORA_UPDATING=True$"),
        (
            (404, {"error": {"message": "No adapter found"}}),
            r"No adapter found; does it see /.*/actor-1-\w+ ",
        ),
        ((400, {"error": {"message": "LoRA rank 64"}}), "load the actor's adapter: status 400: LoRA rank 64"),
    ],
)
def test_a_server_that_does_not_load_the_adapter_stops_the_run(
    refusal: tuple[int, Body], message: str, server: EngineServer, make_config: Any, tmp_path: Path
) -> None:
    server.refusal = refusal[0], json.dumps(refusal[1])
    with pytest.raises(RunStoppedError, match=message) as caught:
        train(with_engine(make_config, server, tmp_path / "a"), tmp_path / "out", unasked)
    assert "\n" not in str(caught.value)
    assert not server.bodies
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [9999]}, "token 9999 is none of the policy's"),
        ({"token_ids": [-1]}, "token -1 is none of the policy's"),
        ({"token_ids": [5, 2, 6]}, "the response goes on after token 2, which ends it"),
        ({"token_ids": [5] * 11}, "the response has 11 tokens of the 10 that are allowed"),
        ({"token_ids": [], "finish_reason": "length"}, "the response is empty and yet as long"),
        ({"token_ids": ["five"]}, r"token_ids: expected numbers, got \['five'\]"),
        ({"token_ids": None, "logprobs": None, "text": None}, "neither token ids nor a text"),
        ({"token_ids": None, "logprobs": None, "text": "", "finish_reason": "length"}, "is empty and yet"),
        ({"finish_reason": "abort"}, r"was broken off \(finish_reason 'abort'\) \(2 tries\)"),
    ],
)
def test_a_response_that_is_none_of_the_policys_stops_the_run(
    change: Body, message: str, server: EngineServer, make_config: Any, tmp_path: Path
) -> None:
    server.changed = lambda choice: {**choice, "finish_reason": "length", **change}
    more: dict[str, Any] = {
        "updates": 1,
        "rollout": {"prompts": 1, "samples": 2},
        "optim": {"minibatches": 1},
    }
    with pytest.raises(RunStoppedError, match=message) as caught:
        train(with_engine(make_config, server, tmp_path / "a", **more), tmp_path / "out", unasked)
    assert "\n" not in str(caught.value)
    assert re.match(r"http://127.0.0.1:\d+/v1: '\w+#[01]': ", str(caught.value))


def test_the_end_of_a_response_is_put_back_where_a_server_leaves_it_out(
    server: EngineServer, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    server.changed = lambda choice: {**choice, "finish_reason": "stop", "token_ids": [5, 6], "logprobs": None}
    train(with_engine(make_config, server, tmp_path, updates=1), tmp_path / "out", arbitrary)
    (line,) = lines_of(tmp_path / "out")
    assert (line["length"], line["truncated"]) == (3, 0)


def test_an_engine_is_no_part_of_the_identity_of_runs_without_one(make_config: Any, tmp_path: Path) -> None:
    assert "engine" not in deciding(make_config("group"))["rollout"]
    one, two = (
        make_config("group", rollout={"engine": {"url": f"http://{host}:8000", "adapter_dir": tmp_path}})
        for host in ("one", "two")
    )
    assert deciding(one) == deciding(two)
    assert deciding(one) != deciding(make_config("group"))
    assert one.rollout.engine.url == "http://one:8000/v1"


def test_an_engine_cannot_follow_a_whole_model() -> None:
    given = ["prompts=[a.jsonl]", "roles={policy: tiny, tune: full}"]
    given += ["rollout.engine={url: 'http://one:8000', adapter_dir: shared}"]
    with pytest.raises(ConfigError, match=r"it follows an adapter, got roles\.tune full; expected lora"):
        load_config(GroupLagConfig, None, given)


def test_a_key_that_is_not_set_is_said_before_anything_is_loaded(
    server: EngineServer, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    config = with_engine(make_config, server, tmp_path / "a")
    engine = config.rollout.engine.model_copy(update={"api_key_env": "NO_SUCH_KEY"})
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engine": engine})})
    with pytest.raises(ConfigError, match=r"rollout\.engine\.api_key_env: NO_SUCH_KEY is not set"):
        train(config, tmp_path / "out", arbitrary)
    assert not (tmp_path / "a").exists()


def launched(server: EngineServer, make_config: Any, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Train as two processes into a folder."""
    settings = with_engine(make_config, server, folder / "shared").model_dump(mode="json")
    settings["scoring"] |= {"reward": "scores_of_texts:reward"}
    settings["scoring"]["costs"] = {"cost": {"source": "scores_of_texts:cost"}}
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings), "utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "FSDP"))}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    command += ["--main_process_port=0", "-m", "equipoise", "train", "group-lag", "--config", str(path)]
    command += ["--out", str(folder / "out")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.slow
def test_two_launched_processes_share_an_engine(
    server: EngineServer, make_config: Any, tmp_path: Path
) -> None:
    server.dies_after = 17  # of 24, in the second rollout
    done = launched(server, make_config, tmp_path)
    assert "status 503 (2 tries); the same command resumes" in done.stderr
    assert re.findall(r"failed \(exitcode: (-?\d+)\) local_rank: 0", done.stderr) == ["3"]
    assert done.returncode == 1  # torch's launcher ends so whatever its processes end with
    server.dies_after = None
    server.bodies.clear()
    server.calls.clear()
    done = launched(server, make_config, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [call.split("-")[0] for call in server.calls] == ["load actor", "write actor", "unload actor"]
    assert len({body["seed"] for body in server.bodies}) == 12
    assert [line["responses"] for line in lines_of(tmp_path / "out")] == [12, 12]
    assert all(max(line["drift"], line["engine_gap"]) < 1e-4 for line in lines_of(tmp_path / "out"))
