"""Batches hold what the chat template says, alike in training and in answering, for any workers."""

from __future__ import annotations

import string
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlavaProcessor, PreTrainedModel, PreTrainedTokenizerFast

from cmoe.common.errors import DataError
from cmoe.data.batches import IGNORED, Collator
from cmoe.data.coin import read_tasks
from cmoe.data.samples import Sample, Turn
from cmoe.data.settings import DataConfig
from cmoe.mini.tasks import write_mini_coin
from cmoe.modeling.base import arguments
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base() -> tuple[PreTrainedModel, Any]:
    return load_base(str(MINI_BASE))


@pytest.fixture(scope="module")
def processor(base: tuple[PreTrainedModel, Any]) -> Any:
    return base[1]


def with_metaspace(processor: Any) -> Any:
    """A processor whose tokenizer, like LLaMA's, puts a space before a text that has none."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=[*string.printable]
    )
    tokenizer.train_from_iterator(["yes no what is the answer to this question"] * 9, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<image>", "<|im_start|>", "<|im_end|>"],
    )
    return LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=fast,
        patch_size=processor.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML,
    )


@pytest.fixture(scope="module", params=["own", "chatml", "metaspace"])
def variant(request: pytest.FixtureRequest, base: tuple[PreTrainedModel, Any]) -> Any:
    """The base's processor; with another template; with another kind of tokenizer."""
    if request.param == "metaspace":
        return with_metaspace(base[1])
    processor = copy(base[1])
    if request.param == "chatml":
        processor.chat_template = CHATML
    return processor


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Samples of all tasks, with and without pictures, of many lengths."""
    root = tmp_path_factory.mktemp("coin")
    write_mini_coin(root, train=12, test=1)
    tasks = read_tasks(DataConfig(root=str(root)), seed=0)
    chosen = [s for task in tasks for s in task.train[:2]]
    alone = [s for s in tasks[0].train if not s.images][:2]
    assert alone
    return [*chosen[:7], *alone, *chosen[7:]]


def collator(processor: Any, max_length: int = 512, max_new_tokens: int = 16) -> Collator:
    return Collator(processor, max_length, max_new_tokens)


def conversation(processor: Any, sample: Sample) -> dict[str, Tensor]:
    """The outside fact: the template renders the whole conversation, the processor reads it."""
    picture = [{"type": "image"}] if sample.images else []
    turns = [
        {"role": "user", "content": [*picture, {"type": "text", "text": sample.text}]},
        {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]},
    ]
    for turn in sample.further:
        turns += [
            {"role": "user", "content": [{"type": "text", "text": turn.text}]},
            {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]},
        ]
    text = processor.apply_chat_template(turns)
    images = [Image.open(*sample.images).convert("RGB")] if sample.images else None
    return dict(processor(text=[text.rstrip("\n")], images=images, return_tensors="pt"))


def row(inputs: dict[str, Tensor], index: int) -> list[int]:
    kept = inputs["attention_mask"][index].bool()
    return inputs["input_ids"][index][kept].tolist()


# What a batch holds


def test_a_training_row_is_the_whole_conversation_tokenised_at_once(
    variant: Any, samples: list[Sample]
) -> None:
    batch = collator(variant).training(samples)
    assert len({len(row(batch, i)) for i in range(len(samples))}) > 4, "lengths differ"
    pictures: list[Tensor] = []
    for i, sample in enumerate(samples):
        whole = conversation(variant, sample)
        assert row(batch, i) == whole["input_ids"][0].tolist()
        if sample.images:
            pictures.append(whole["pixel_values"][0])
    assert 0 < len(pictures) < len(samples)
    assert torch.equal(batch["pixel_values"], torch.stack(pictures))


def test_a_conversation_is_trained_on_whole_and_its_answers_alone_are_labelled(
    variant: Any, samples: list[Sample]
) -> None:
    end = "<|im_end|>" if variant.chat_template == CHATML else "</s>"
    turns = (Turn("And what's left of it?", "two cups"), Turn(" Are you sure? ", "yes, 4"))
    several = [replace(s, further=turns[: i % 3]) for i, s in enumerate(samples[:6])]
    batch = collator(variant).training(several)
    for i, sample in enumerate(several):
        assert row(batch, i) == conversation(variant, sample)["input_ids"][0].tolist()
        labels = batch["labels"][i]
        labelled = labels != IGNORED
        assert torch.equal(labels[labelled], batch["input_ids"][i, -len(labels) :][labelled])
        said = [sample.answer, *(t.answer for t in sample.further)]
        parts = variant.tokenizer.decode(labels[labelled]).split(end)
        assert [part.strip() for part in parts] == [*said, ""]
    # What is located and judged is the first question alone.
    prompts = collator(variant).prompts(several)
    plain = collator(variant).prompts(samples[:6])
    assert torch.equal(prompts["input_ids"], plain["input_ids"])


# Characters of any script, line breaks and spaces at either end.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=24)


@settings(max_examples=50, deadline=None)
@given(question=TEXT, answer=TEXT.map(str.strip).filter(bool))
def test_any_text_is_tokenised_as_in_the_whole_conversation(
    variant: Any, question: str, answer: str
) -> None:
    rule = collator(variant).texts  # the base's own tokens are refused before
    assume(not rule.wrong(question) and not rule.wrong(answer))
    sample = Sample("1", question, answer)
    batch = collator(variant).training([sample])
    assert row(batch, 0) == conversation(variant, sample)["input_ids"][0].tolist()


def test_labels_are_the_answer_and_its_end_of_turn_and_nothing_else(
    variant: Any, samples: list[Sample]
) -> None:
    batch = collator(variant).training(samples)
    end = "<|im_end|>" if variant.chat_template == CHATML else "</s>"
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    width = batch["labels"].shape[1]
    for i, sample in enumerate(samples):
        labels = batch["labels"][i]
        labelled = labels != IGNORED
        ids, mask = batch["input_ids"][i, -width:], batch["attention_mask"][i, -width:]
        assert torch.equal(labels[labelled], ids[labelled])
        said = variant.tokenizer.decode(labels[labelled])
        assert said.strip() == sample.answer + end
        # They are the last tokens of the row, without a gap.
        count = int(labelled.sum())
        shown = labels[mask == 1].tolist()
        assert shown[-count:] == labels[labelled].tolist()
        assert set(shown[:-count]) == {IGNORED}
        assert set(labels[mask == 0].tolist()) <= {IGNORED}
        padding = batch["attention_mask"][i] == 0
        assert set(batch["input_ids"][i][padding].tolist()) <= {variant.tokenizer.pad_token_id}
    # Nothing before the first answer but the token that it is predicted from.
    assert set(batch["labels"][:, 0].tolist()) == {IGNORED}
    assert (batch["labels"][:, 1] != IGNORED).any()


def test_prompts_are_the_beginning_of_training_rows(variant: Any, samples: list[Sample]) -> None:
    cut = collator(variant)
    prompts, training = cut.prompts(samples), cut.training(samples)
    width = prompts["input_ids"].shape[1]
    assert prompts.keys() == training.keys() - {"labels"}
    for name, tensor in prompts.items():
        got = training[name] if name == "pixel_values" else training[name][:, :width]
        assert torch.equal(got, tensor), name
    assert training["labels"].shape[1] == training["input_ids"].shape[1] - width + 1
    ends = prompts["attention_mask"]
    assert ends[:, -1].all(), "padded on the left: the answer follows the prompt"
    assert [len(tail.ids) for tail in cut.tails(samples)] == (
        training["attention_mask"].sum(1) - ends.sum(1)
    ).tolist()


def test_a_batch_gives_every_sample_what_it_gets_alone(
    base: tuple[PreTrainedModel, Any], samples: list[Sample]
) -> None:
    model, processor = base
    cut = collator(processor)
    with torch.no_grad():
        together = model(**cut.prompts(samples)).logits[:, -1]
        for i, sample in enumerate(samples[4:10], 4):
            alone = model(**cut.prompts([sample])).logits[0, -1]
            torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_padding_to_a_length_leaves_the_last_tokens_logits(
    base: tuple[PreTrainedModel, Any], samples: list[Sample]
) -> None:
    model, processor = base
    cut = collator(processor)
    plain = cut.prompts(samples[4:10])
    width = plain["input_ids"].shape[1]
    wanted = model(**plain).logits[:, -1].log_softmax(-1)
    for length in (width, width + 1, width + 40):
        padded = cut.prompts(samples[4:10], length)
        assert padded["input_ids"].shape == padded["attention_mask"].shape == (6, length)
        assert torch.equal(padded["attention_mask"].sum(1), plain["attention_mask"].sum(1))
        got = model(**padded).logits[:, -1].log_softmax(-1)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_models_loss_is_the_answers_cross_entropy(
    base: tuple[PreTrainedModel, Any], samples: list[Sample]
) -> None:
    model, processor = base
    cut = collator(processor)
    total, tokens = 0.0, 0
    for sample, tail in zip(samples, cut.tails(samples), strict=True):
        whole = conversation(processor, sample)
        log_probs = model(**whole).logits[0].log_softmax(-1)
        length = whole["input_ids"].shape[1]
        for place, token in zip(range(length - len(tail.ids), length), tail.ids, strict=True):
            total -= log_probs[place - 1, token].item()
        tokens += len(tail.ids)
    loss = model(**arguments(cut.training(samples)), num_items_in_batch=tokens).loss
    assert loss.item() == pytest.approx(total / tokens, rel=1e-4)


# What is refused


def lengths(processor: Any, sample: Sample) -> tuple[int, int]:
    """Tokens of its prompt and of its answer."""
    cut = collator(processor)
    return len(row(cut.prompts([sample]), 0)), len(cut.tails([sample])[0].ids)


def test_a_prompt_without_room_for_an_answer_is_named(processor: Any) -> None:
    fine, long = Sample("fine", "Why?", "no"), Sample("long/7", "Why? " * 9, "no")
    prompt, _ = lengths(processor, long)
    collator(processor, prompt + 16, 16).prompts([fine, long])
    with pytest.raises(DataError, match=f"'long/7': its prompt has {prompt} tokens .* 16") as no:
        collator(processor, prompt + 15, 16).prompts([fine, long])
    assert f"at most {prompt + 15}" in str(no.value)
    with pytest.raises(DataError, match="long/7"):
        collator(processor, prompt + 15, 16).prompts([fine, long], prompt + 40)


def test_an_answer_that_does_not_fit_is_named(processor: Any) -> None:
    fine, long = Sample("fine", "Why?", "no"), Sample("long/8", "Why?", "because " * 20)
    prompt, answer = lengths(processor, long)
    collator(processor, prompt + answer, 1).training([long, fine])
    with pytest.raises(DataError, match=rf"'long/8': its prompt has {prompt} .* needs {answer};"):
        collator(processor, prompt + answer - 1, 1).training([long, fine])
