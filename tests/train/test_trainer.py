"""The training loop: it learns, it balances, and it goes on bit for bit after a stop."""

import json
import math
import threading
from concurrent.futures import CancelledError

import pytest
import torch
from torch.nn.functional import cross_entropy

from abyssal.errors import CheckpointError
from abyssal.train.documents import TokenStream
from abyssal.train.run import train
from abyssal.train.settings import Settings
from abyssal.train.trainer import Trainer, bits_per_byte


def weights_of(trainer) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trainer.model.state_dict().items()}


def make_trainer(settings, documents) -> Trainer:
    return Trainer(settings, TokenStream(documents, bos_id=0, eos_id=1, seed=settings.seed))


def test_a_resumed_run_equals_one_that_was_never_stopped(make_settings, documents, tmp_path):
    settings = make_settings()
    whole, history = train(settings, documents, tmp_path / "whole")

    def stop(report, history):
        # One stop where the sequence length has not changed yet, and in the middle of a row.
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, documents, tmp_path / "parts", on_step=stop)
    parts, resumed = train(settings, documents, tmp_path / "parts", resume=True)
    assert weights_of(parts) == weights_of(whole)
    assert resumed.steps == history.steps
    assert resumed.pending == history.pending


def test_a_kill_while_saving_leaves_the_state_before(make_settings, documents, tmp_path):
    settings = make_settings()
    whole, _ = train(settings, documents, tmp_path / "whole")

    def stop(report, history):
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, documents, tmp_path / "parts", on_step=stop)
    # What a later save had written when it was killed: its tensors, not yet named by the state.
    (tmp_path / "parts" / "state-000009.safetensors").write_bytes(b"half")
    (tmp_path / "parts" / "state.json.new").write_text("{")
    parts, _ = train(settings, documents, tmp_path / "parts", resume=True)
    assert weights_of(parts) == weights_of(whole)
    names = sorted(file.name for file in (tmp_path / "parts").glob("state-*"))
    assert names == ["state-000012.safetensors"]


def test_ctrl_c_within_a_step_keeps_the_steps_before(make_settings, documents, tmp_path):
    settings = make_settings()
    whole, _ = train(settings, documents, tmp_path / "whole")
    real, calls = Trainer._add, []

    def interrupted(self, done):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(settings, documents, tmp_path / "parts")
    state = json.loads((tmp_path / "parts" / "state.json").read_text())
    assert (state["steps_done"], state["place"]) == (3, 3 * settings.batch_tokens)
    parts, _ = train(settings, documents, tmp_path / "parts", resume=True)
    assert weights_of(parts) == weights_of(whole)


def test_a_stop_ends_the_forward_and_the_backward_pass_at_the_next_layer(make_settings, documents):
    model = make_trainer(make_settings(), documents).model
    stop = threading.Event()
    loss = model.hidden(torch.zeros(1, 8, dtype=torch.long), model.begin(8, stop=stop)).sum()
    stop.set()
    with pytest.raises(CancelledError):
        loss.backward()
    with pytest.raises(CancelledError):
        model.hidden(torch.zeros(1, 8, dtype=torch.long), model.begin(8, stop=stop))


def test_the_loss_falls(make_settings, documents, tmp_path):
    _, history = train(make_settings(steps=40, dropout=0.0), documents, tmp_path)
    losses = [row[2] for row in history.steps]
    assert [row[0] for row in history.steps] == [10, 20, 30, 40]
    assert losses[-1] < 0.6 * losses[0]
    assert history.steps[-1][3] < 0.9 * history.steps[0][3]


def test_the_bias_moves_each_expert_toward_the_mean_load(make_settings, documents):
    trainer = make_trainer(make_settings(balance_rate=0.25), documents)
    loads = torch.tensor([[0, 8, 4, 4, 9, 1, 4, 2], [4, 4, 4, 4, 4, 4, 4, 4]])
    busiest = trainer.balance(loads, 0.5)
    routed = [part.correction_bias.tolist() for _, part in trainer.model.routed()]
    assert routed[0] == [0.125, -0.125, 0.0, 0.0, -0.125, 0.125, 0.0, 0.125]
    assert routed[1] == [0.0] * 8
    assert busiest == (9 / 4, 1.0)


def test_balancing_evens_out_a_router_that_prefers_one_expert(make_settings, documents):
    settings = make_settings(
        steps=30, learning_rate=0.0, embedding_rate=0.0, router_rate=0.0, balance_rate=0.1
    )
    loads = {}
    for rate in (0.0, settings.balance_rate):
        trainer = make_trainer(
            Settings(**{**settings.__dict__, "balance_rate": rate, "balance_loss": 0.0}), documents
        )
        with torch.no_grad():
            # A router whose weights are nearly equal gives the same few experts to every token.
            for _, part in trainer.model.routed():
                part.router.mul_(0.05).add_(torch.linspace(0, 0.2, 8)[:, None])
        with trainer.running():
            for _ in range(settings.steps):
                report = trainer.step()
        loads[rate] = max(report.busiest)
    assert loads[0.0] > 2.0
    assert loads[settings.balance_rate] < 0.7 * loads[0.0]


def test_the_balance_loss_is_one_where_every_expert_is_used_alike(make_settings, documents):
    (_, part), *_ = make_trainer(make_settings(), documents).model.routed()
    even = torch.arange(16).view(8, 2) % 8
    scores = torch.full((8, 8), 0.3)
    assert part.balance_loss(scores, even, 2).item() == pytest.approx(1.0, abs=1e-6)
    # All tokens at the two experts with twice the score of the others: 8 / 2 of f, 2 / 10 of P.
    scores[:, :2] = 0.6
    uneven = torch.tensor([[0, 1]] * 8)
    assert part.balance_loss(scores, uneven, 2).item() == pytest.approx(1.6, abs=1e-6)


def test_the_prediction_layer_learns_the_token_after_the_next(make_settings, documents):
    trainer = make_trainer(make_settings(dropout=0.0, embedding_dropout=0.0), documents)
    tokens = trainer.stream.take(4, 16)
    settings = trainer.settings
    model = trainer.model
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith((".o", ".down")):
                value.fill_(0.01).add_(torch.linspace(-0.2, 0.2, value.shape[-1]))
        run = model.begin(16)
        hidden = model.hidden(tokens[:, :16], run)
        embedded = torch.nn.functional.embedding(tokens[:1, 1:17], model.embed)
        logits = model.prediction(embedded, hidden[:1], run) @ model.head_weight.t()
        wanted = cross_entropy(logits[0], tokens[0, 2:18])
    with trainer.running():
        report = trainer.step()
    assert settings.prediction_share * 4 == 1
    # The first of the step's four microbatches holds these very sequences; each counts a quarter.
    single = Trainer(
        make_settings(batch_tokens=64, microbatch_tokens=64, dropout=0.0, embedding_dropout=0.0),
        TokenStream(documents, bos_id=0, eos_id=1, seed=settings.seed),
    )
    single.model.load_state_dict(make_trainer(settings, documents).model.state_dict())
    with torch.no_grad():
        for name, value in single.model.named_parameters():
            if name.endswith((".o", ".down")):
                value.fill_(0.01).add_(torch.linspace(-0.2, 0.2, value.shape[-1]))
    with single.running():
        alone = single.step()
    assert alone.prediction_loss == pytest.approx(wanted.item(), rel=1e-5)
    assert math.isfinite(report.prediction_loss)


def test_a_run_without_prediction_layer_and_experts_trains_too(make_settings, documents, tmp_path):
    architecture = {
        **make_settings().architecture,
        "n_routed_experts": 0,
        "first_k_dense_replace": 2,
        "num_nextn_predict_layers": 0,
    }
    trainer, history = train(make_settings(architecture=architecture), documents, tmp_path)
    assert trainer.model.prediction is None
    assert history.steps[0][3] is None


def test_texts_are_scored_from_their_beginning(make_settings, documents):
    trainer = make_trainer(make_settings(), documents)
    texts = [(documents[0], 50), (documents[1], 30)]
    with trainer.running():
        found = bits_per_byte(trainer, texts)
    nats = 0.0
    with torch.no_grad():
        for ids, _ in texts:
            tokens = torch.tensor([[0, *ids]])
            nats += float(
                cross_entropy(trainer.model.logits(tokens[:, :-1])[0], tokens[0, 1:]) * len(ids)
            )
    assert found == pytest.approx(nats / math.log(2) / 80, rel=1e-5)


def test_threads_are_put_back_after_a_run(make_settings, documents, tmp_path):
    before = torch.get_num_threads()
    train(make_settings(steps=1), documents, tmp_path)
    assert torch.get_num_threads() == before


def test_a_run_is_not_written_over(make_settings, documents, tmp_path):
    train(make_settings(steps=1), documents, tmp_path)
    with pytest.raises(CheckpointError, match="holds a run already"):
        train(make_settings(steps=1), documents, tmp_path)


def test_a_run_is_not_resumed_with_other_settings(make_settings, documents, tmp_path):
    train(make_settings(steps=1), documents, tmp_path)
    with pytest.raises(CheckpointError, match="other settings: learning_rate differ"):
        train(make_settings(steps=1, learning_rate=1e-3), documents, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "state.json").unlink(), "holds no saved run"),
        (lambda folder: (folder / "state.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "state.json").write_text("{}"), "lacks settings, tensors"),
        (lambda folder: next(folder.glob("state-*")).write_bytes(b"x" * 99), "cannot be read"),
    ],
)
def test_a_damaged_state_is_named(make_settings, documents, tmp_path, damage, message):
    train(make_settings(steps=1), documents, tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        train(make_settings(steps=1), documents, tmp_path, resume=True)


def test_a_gradient_that_is_not_finite_stops_the_run_by_name(make_settings, documents):
    trainer = make_trainer(make_settings(), documents)
    with torch.no_grad():
        trainer.model.layers[0].attention.kv_b.fill_(float("inf"))
    before = weights_of(trainer)
    with trainer.running(), pytest.raises(FloatingPointError, match="step 1 is not finite"):
        trainer.step()
    assert weights_of(trainer) == before
