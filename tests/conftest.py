"""Tiny models with random weights and real tokenizers, made once per session, shared by all tests."""

import importlib
import json
import re
import signal
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

# Whoever runs the tests in the background ignores it, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SENTENCES = [
    "How do I bake bread at home without an oven?",
    "Mix flour, water, salt and yeast, then wait until the dough has doubled.",
    "I am sorry, but I cannot help with that request.",
    "The weather in the mountains changes quickly, so take a warm coat.",
    "user assistant system You are a helpful assistant.",
    "Please explain how the tides work and why there are two of them a day.",
    "A short answer is often the better answer, and a kind one is better still.",
    "0 1 2 3 4 5 6 7 8 9 10 yes no safe unsafe help harm",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that goes when the tests end; the models and tools that are installed are in it too."""
    from equipoise.models.builtin import cache_folder

    own = tmp_path_factory.mktemp("cache")
    for name in ("models", "tools"):
        (installed := cache_folder() / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(installed.resolve(), target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_CACHE", str(own))
        yield own


class Asked(NamedTuple):
    """A request to a server of a test's own."""

    path: str
    headers: Mapping[str, str]
    body: Any


@pytest.fixture(scope="session")
def serve_json() -> Callable[..., ThreadingHTTPServer]:
    """Return what serves on a port of this machine, any one that is free if 0, until the server is shut down.

    It takes a function that gives the status and the reply to a request, as JSON or as bytes; or None, where
    nothing is replied.
    """

    def serve(reply: Callable[[Asked], tuple[int, Any] | None], port: int = 0) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = reply(Asked(self.path, self.headers, body))
                if said is None:
                    self.close_connection = True
                    return
                status, whole = said
                raw = whole if isinstance(whole, bytes) else json.dumps(whole).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        target, pause = server.serve_forever, {"poll_interval": 0.01}
        threading.Thread(target=target, kwargs=pause, daemon=True).start()
        return server

    return serve


@pytest.fixture
def at_once(tmp_path: Path) -> Callable[[str, Sequence[str]], list[str]]:
    """Run a script in several processes, one for each argument, which all begin at the same moment.

    The script says `ready` and waits for a line. What they wrote to stderr is returned; each must end well.
    """

    def run(script: str, arguments: Sequence[str]) -> list[str]:
        pipe = subprocess.PIPE
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, each],
                cwd=tmp_path,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                text=True,
            )
            for each in arguments
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), said
        return said

    return run


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer llama (hidden 32, 4 heads, 2 key-value heads, tied), as SmolLM2 is shaped.

    Its byte-level tokenizer has the chatml template, and its pad token is its end-of-sequence token.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            initializer_range=0.2,  # wide enough that greedy choices are not near-ties
        )
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer BERT (hidden 32, 4 heads) with an uncased WordPiece tokenizer, as MiniLM is."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    # a trained WordPiece vocabulary differs from run to run, and with it what a tiny model can learn
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(SENTENCES).lower())))
    letters = string.ascii_lowercase + string.digits
    pieces = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *words])
    pieces |= dict.fromkeys(f"##{piece}" for piece in (*letters, "ed", "er", "es", "ing", "ly", "ion"))
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )

    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=0,
        )
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-encoder"
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def weights_have_usual_permissions(tmp_path: Path) -> Callable[[Path], bool]:
    """Whether there are weights in a folder, and all have the permissions of any new file."""

    def check(folder: Path) -> bool:
        (fresh := tmp_path / "fresh").touch()
        modes = {path.stat().st_mode for path in folder.rglob("*.safetensors")}
        return modes == {fresh.stat().st_mode}

    return check


@pytest.fixture(scope="module")
def load_scripts() -> Iterator[Callable[..., dict[str, ModuleType]]]:
    """Loads modules of `benchmarks/` by name, which import each other, and forgets them at the end."""
    loaded: list[str] = []

    def load(*names: str) -> dict[str, ModuleType]:
        loaded.extend(names)
        return {name: importlib.import_module(name) for name in names}

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield load
    for name in loaded:
        sys.modules.pop(name, None)
