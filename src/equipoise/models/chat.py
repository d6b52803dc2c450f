"""A chat as token ids under the model's own template, and a response back as text."""

from collections.abc import Sequence
from typing import cast

import jinja2
from transformers import PreTrainedTokenizerBase

from equipoise.errors import DataError, ModelError
from equipoise.progress import say
from equipoise.protocols import Messages


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = True
) -> list[int]:
    """Return the token ids of a chat under the tokenizer's template, ready for the answer to follow.

    A tokenizer without a template gets `user: ...` lines, said once per tokenizer.
    """
    if tokenizer.chat_template is None:
        if not getattr(tokenizer, "_equipoise_told", False):
            say(f"{tokenizer.name_or_path}: no chat template; a plain 'user: ... assistant:' is used")
            tokenizer._equipoise_told = True
        lines = [f"{turn['role']}: {turn['content']}" for turn in messages]
        text = "\n".join([*lines, "assistant:"] if add_generation_prompt else lines)
        return cast(list[int], tokenizer(text)["input_ids"])
    try:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, return_dict=False
        )
    except jinja2.TemplateError as exc:
        raise DataError(
            f"prompt: refused by the chat template of the model: {str(exc).strip().splitlines()[0]}"
        ) from exc
    return cast(list[int], ids)


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a response, the one that ends an assistant's turn included."""
    if tokenizer.chat_template is None:
        text = " " + text  # after `assistant:`
    ids = cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*ids, end_of_turn(tokenizer)]


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of generated ids, without special tokens."""
    text = cast(str, tokenizer.decode(list(ids), skip_special_tokens=True))
    return text.removeprefix(" ") if tokenizer.chat_template is None else text


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends an assistant's turn: as the template writes it, or end-of-sequence."""
    if tokenizer.chat_template is not None:
        marker = "the answer"
        chat = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": marker}]
        text = cast(str, tokenizer.apply_chat_template(chat, tokenize=False))
        after = cast(list[int], tokenizer(text.rpartition(marker)[2], add_special_tokens=False)["input_ids"])
        special = special_ids(tokenizer)
        for token in after:
            if token in special:
                return token
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token")
    return cast(int, tokenizer.eos_token_id)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that are no text: those of the tokenizer and those added as special."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)
