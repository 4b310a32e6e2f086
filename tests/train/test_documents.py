"""The token stream: every token once an epoch, in an order that a place number restores."""

import pytest
import torch

from abyssal.train.documents import TokenStream

DOCUMENTS = [[10, 11, 12], [20], [30, 31], []]


def stream(**options) -> TokenStream:
    return TokenStream(DOCUMENTS, bos_id=0, eos_id=1, seed=5, **options)


def test_an_epoch_holds_every_document_once_between_its_control_tokens():
    tokens = stream().epoch(0).tolist()
    starts = [place for place, token in enumerate(tokens) if token == 0]
    pieces = [tokens[begin:end] for begin, end in zip(starts, [*starts[1:], None], strict=True)]
    assert sorted(pieces) == [[0, 10, 11, 12, 1], [0, 20, 1], [0, 30, 31, 1]]
    assert stream().epoch_tokens == len(tokens) == 12


def test_sequences_follow_on_and_share_the_two_targets_at_their_ends():
    whole = torch.cat([stream().epoch(0), stream().epoch(1), stream().epoch(2)])
    rows = stream().take(4, 5)
    assert rows.shape == (4, 7)
    for index, row in enumerate(rows):
        assert torch.equal(row, whole[5 * index : 5 * index + 7])


def test_a_stream_at_a_saved_place_goes_on_where_it_was():
    first = stream()
    first.take(7, 4)
    second = stream(place=first.place)
    assert torch.equal(first.take(6, 9), second.take(6, 9))


def test_epochs_have_different_orders():
    orders = {tuple(stream().epoch(number).tolist()) for number in range(6)}
    assert len(orders) > 1


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="nothing to train on"):
        TokenStream([[]], bos_id=0, eos_id=1, seed=0)
