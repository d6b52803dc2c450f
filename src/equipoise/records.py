"""The records that travel through the whole toolkit. Plain text in, no tensors.

A field that is None was **not labelled**; an empty set of categories was **labelled harmless**.
The two are never mixed up, and nothing here repairs a contradiction: `data.check` reports it.
"""

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PlainSerializer

Level = Annotated[int, Field(strict=True, ge=0, le=3)]
"""Severity of a whole response: 0 safe, 1 minor, 2 moderate, 3 severe."""

Refusal = Literal["none", "partial", "full"]
"""none: engages; partial: declines the harmful part and offers something; full: only declines."""

REFUSALS: tuple[Refusal, ...] = ("none", "partial", "full")


def _no_truth_value(value: object) -> object:
    """Refuse `true`, which Python takes for 1 and a reader for "this one is better"."""
    if isinstance(value, bool):
        raise ValueError("expected 0, 1 or 'tie'")
    return value


Choice = Annotated[Literal[0, 1, "tie"], BeforeValidator(_no_truth_value)]
"""Index of the preferred answer of a pair, or a tie."""

Names = Annotated[frozenset[str], PlainSerializer(sorted, return_type=list[str])]
"""A set of category names, written to JSON as a sorted list."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(_Frozen):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = str | tuple[Message, ...]
"""A prompt is one user text or the chat so far."""


class Record(_Frozen):
    """What every record carries: an id, and where it comes from. Unknown fields are refused."""

    id: str
    source: str = "unknown"
    """Data set it came from, for example `pku-saferlhf`."""
    licence: str = "unknown"
    """SPDX id or short name; `unknown` where the source states none."""
    label_origin: str | None = None
    """Who labelled it: `human`, `model:NAME`, `authors` ..."""
    annotators: tuple[str, ...] = ()
    provenance: dict[str, JsonValue] = {}
    """Columns of the source that are no field here, kept as they were."""


class Labels(_Frozen):
    """Harm labels of one response in its context; None = not labelled."""

    is_safe: bool | None = None
    severity: Level | None = None
    categories: Names | None = None
    rated: Names | None = None
    """Categories that were looked at; None = all of the taxonomy, where `categories` is given."""
    category_severity: dict[str, Level] | None = None
    """For the sources that grade each category by itself."""
    refusal: Refusal | None = None


class Answer(Labels):
    """One response of a pair, with its labels."""

    response: str


class Exchange(Record, Labels):
    """One prompt and one response, with the harm labels of the response in this context."""

    prompt: Conversation
    prompt_is_harmful: bool | None = None
    """Whether the prompt by itself asks for harm; says nothing of the response."""
    response: str
    taxonomy: str = "pku19"


class Prompt(Record):
    """A prompt without a response."""

    prompt: Conversation
    is_harmful: bool | None = None
    categories: Names | None = None
    severity: Level | None = None
    """Severity of a response that would go along with it."""
    twin: str | None = None
    """Id of the benign look-alike of a harmful prompt, or the other way round."""
    taxonomy: str = "pku19"

    def exchange(self, response: str, sample: int | None = None) -> Exchange:
        """Return a response with what is known of its prompt; its id is `ID#SAMPLE`, or `ID` without one."""
        return Exchange(
            id=self.id if sample is None else f"{self.id}#{sample}",
            prompt=self.prompt,
            prompt_is_harmful=self.is_harmful,
            response=response,
            taxonomy=self.taxonomy,
            provenance=self.provenance,
        )


class Pair(Record):
    """Two answers to one prompt, compared for help and for safety separately."""

    prompt: Conversation
    answers: tuple[Answer, Answer]
    better: Choice | None = None
    """The more helpful answer, judged independently of harm."""
    safer: Choice | None = None
    """The less harmful answer; any safe answer ranks above any unsafe one."""
    overall: Choice | None = None
    """A single preference that weighs both."""
    taxonomy: str = "pku19"

    def exchange(self, index: Literal[0, 1]) -> Exchange:
        """Return answer `index` as an exchange of its own; its id is `ID#index`."""
        shared = self.model_dump(exclude={"id", "answers", "better", "safer", "overall"})
        labels = self.answers[index].model_dump()
        return Exchange(id=f"{self.id}#{index}", **shared, **labels)


class Judgement(Record):
    """One annotator's labels (a person's or a model's) on one exchange or pair."""

    subject: str
    """Id of the exchange or pair that was judged."""
    annotator: str
    labels: Labels | None = None
    better: Choice | None = None
    safer: Choice | None = None
    overall: Choice | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    rationale: str | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None


Polarity = Literal["higher_is_better", "higher_is_worse"]


class Score(NamedTuple):
    """A value that knows which way is good. No sign lives in a comment.

    >>> Score(1.5, "higher_is_worse").harm > 0
    True
    """

    value: float
    polarity: Polarity

    @property
    def harm(self) -> float:
        """The value turned so that more is worse."""
        return self.value if self.polarity == "higher_is_worse" else -self.value


def text_of(prompt: Conversation) -> str:
    """Return a prompt as one text: the turns of a chat joined by line breaks, roles named.

    >>> text_of((Message(role="user", content="Hi"), Message(role="assistant", content="Hello")))
    'user: Hi\\nassistant: Hello'
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


def messages_of(prompt: Conversation) -> list[dict[str, str]]:
    """Return a prompt as chat messages, the form that chat templates and servers take."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [turn.model_dump() for turn in prompt]
