"""A token's logits are its own, bit for bit: whatever the batch, the threads and the cuts."""

import pytest
import torch

import abyssal
from abyssal.models import load_model
from abyssal.nn import Batch, Span
from abyssal.testing.checkpoints import write_checkpoint
from abyssal.testing.numeric import assert_same_bits

PAGE = 16


@pytest.fixture
def threads():
    """Set the number of threads for the length of a test."""
    before = abyssal.get_num_threads()
    yield abyssal.set_num_threads
    abyssal.set_num_threads(before)


def prompt(number):
    """Return a prompt of 3 to 40 tokens that no other number has."""
    length = 3 + number * 11 % 38
    return [(number * 31 + place * place * 7) % 128 for place in range(length)]


class Together:
    """Sequences that go step by step through one model and one paged cache."""

    def __init__(self, model, prompt_lengths, room):
        self.model, self.lengths = model, prompt_lengths
        self.pages = -(-room // PAGE)
        self.caches = model.new_caches(self.pages * PAGE * len(prompt_lengths))
        self.positions = [0] * len(prompt_lengths)

    def step(self, *given):
        """Append tokens to each sequence; return each one's logits."""
        spans, ids, positions, slots = [], [], [], []
        for number, tokens in enumerate(given):
            first = self.positions[number]
            # The pages of all sequences lie between one another.
            table = torch.arange(self.pages, dtype=torch.int32) * len(given) + number
            place = torch.arange(first, first + len(tokens))
            spans.append(Span(len(ids), len(tokens), first, self.lengths[number], table))
            ids += tokens
            positions.append(place)
            slots.append(table[place // PAGE].long() * PAGE + place % PAGE)
            self.positions[number] += len(tokens)
        batch = Batch(torch.tensor(ids), torch.cat(positions), torch.cat(slots), tuple(spans), PAGE)
        with torch.no_grad():
            logits = self.model(batch, self.caches)
        return list(logits.split([len(tokens) for tokens in given]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packing", ["none", "fp8", "mxfp4"])
def test_a_sequence_has_the_same_logits_alone_and_in_every_batch(packing, dtype, tmp_path, threads):
    write_checkpoint(tmp_path, packing=packing, torch_dtype=dtype, num_hidden_layers=3)
    model, _ = load_model(tmp_path)
    prompts = [prompt(number) for number in range(33)]
    threads(1)
    alone = []
    for tokens in prompts:
        sequence = Together(model, [len(tokens)], len(tokens) + 2)
        alone.append(torch.cat([*sequence.step(tokens), *sequence.step([5]), *sequence.step([6])]))
    for count in (2, 3, 4, 5, 8, 16, 33):
        for workers in (1, 2):
            threads(workers)
            batch = Together(model, [len(tokens) for tokens in prompts[:count]], 42)
            steps = [batch.step(*prompts[:count]), *(batch.step(*[[t]] * count) for t in (5, 6))]
            for number, parts in enumerate(zip(*steps, strict=True)):
                assert_same_bits(torch.cat(parts), alone[number])


@pytest.mark.parametrize("packing", ["none", "fp8", "mxfp4"])
def test_a_prompt_has_the_same_logits_however_it_is_cut(packing, tmp_path, threads):
    write_checkpoint(tmp_path, packing=packing, torch_dtype="bfloat16", num_hidden_layers=2)
    model, _ = load_model(tmp_path)
    tokens = [(place * place * 3 + place) % 128 for place in range(530)]
    wanted = None
    for chunk, workers in ((530, 1), (512, 2), (64, 1), (64, 2), (7, 1), (1, 2)):
        threads(workers)
        sequence = Together(model, [530], 530)
        parts = [sequence.step(tokens[at : at + chunk])[0] for at in range(0, 530, chunk)]
        logits = torch.cat(parts)
        wanted = logits if wanted is None else wanted
        assert_same_bits(logits, wanted)
