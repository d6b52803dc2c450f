"""What a person sees of a training: one bar over all steps, and none of the library's advice."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from equipoise.progress import bar


class Progress(TrainerCallback):  # type: ignore[misc]
    """One bar over all optimiser steps."""

    def __init__(self, label: str) -> None:
        """Say what is being done."""
        self.label = label
        self.stack = contextlib.ExitStack()
        self.advance: Callable[[], None] = lambda: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the bar."""
        if state.is_world_process_zero:
            self.advance = self.stack.enter_context(bar(self.label, state.max_steps, state.global_step))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Advance it."""
        self.advance()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take it away."""
        self.stack.close()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the library's advisory log lines off the terminal."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
