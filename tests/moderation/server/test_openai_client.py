"""The official `openai` client against the server: it works unchanged, and is refused as it expects."""

from typing import Any

import pytest

pytestmark = pytest.mark.tools

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def served(serve_shared: Any) -> Any:
    return serve_shared(keys=("a-key",), limits={"max_texts": 5})


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="a-key", max_retries=0) as client:
        yield client


def test_moderations_come_as_the_clients_own_types(client: Any) -> None:
    found = client.moderations.create(
        model="omni-moderation-latest", input=["take a coat", "the harm is warm"]
    )
    assert found.model == "omni-moderation-latest"
    safe, unsafe = found.results
    assert (safe.flagged, unsafe.flagged) == (False, True)
    assert (unsafe.categories.violence, unsafe.categories.harassment_threatening) == (True, False)
    assert unsafe.category_scores.violence > 0.9
    assert unsafe.category_scores.self_harm_intent == 0
    assert unsafe.category_applied_input_types.violence == ["text"]
    assert unsafe.model_extra["severity"] == 2
    assert unsafe.model_extra["native_categories"]["Violence"]["severity"] == 2


def test_parts_and_a_policy_may_be_given(client: Any) -> None:
    parts = [{"type": "text", "text": "the harm"}]
    assert client.moderations.create(input=parts, extra_body={"policy": "default"}).results[0].flagged
    with pytest.raises(openai.BadRequestError, match="no such policy"):
        client.moderations.create(input="a", extra_body={"policy": "strict"})
    image = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    with pytest.raises(openai.BadRequestError, match="images are not judged here"):
        client.moderations.create(input=image)


def test_the_models_page_and_a_chat_with_the_guard(client: Any) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    messages = [{"role": "user", "content": "the harm"}]
    whole = client.chat.completions.create(model=model.id, messages=messages, max_tokens=3, temperature=0)
    assert whole.choices[0].message.content == "unsafe\nS1"
    pieces = client.chat.completions.create(model=model.id, messages=messages, stream=True)
    text = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
    assert text == "unsafe\nS1"
    assert client.completions.create(model=model.id, prompt="take a coat").choices[0].text == "safe"


def test_refusals_are_the_clients_own_errors(served: Any, client: Any) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.moderations.create(input="a")
        assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.APIStatusError) as too_many:
        client.moderations.create(input=["a"] * 6)
    assert too_many.value.status_code == 413
    served.reader.is_nan = True
    try:
        with pytest.raises(openai.InternalServerError) as failed:
            client.moderations.create(input="a")
    finally:
        served.reader.is_nan = False
    assert failed.value.status_code == 503
