"""The DeepSeek-V3 decoder in the form that trains fast on a processor.

The same function as ``abyssal.models.DeepseekModel.forward_sequence`` (a test compares the two, and
transformers), laid out for training: the experts of a layer are stacked in one tensor, gate and up
projections are one matrix, and the expensive parts are fused (``fused.py``). Nothing here reads or
writes a checkpoint; ``export.py`` gives every tensor its published name.

Source: DeepSeek-V3 (arXiv 2412.19437), sections 2.1 and 2.2.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from abyssal.train import fused


@dataclass
class Pass:
    """What one forward pass needs beside its tokens, and what it leaves behind.

    Attributes:
        cos: f32 ``[tokens, rope / 2]``.
        sin: Like ``cos``.
        dropout: Share of what a layer part adds that is dropped; needs ``generator``.
        generator: Source of the dropout.
        stop: Set to make the pass end at its next layer.
        balance: Whether to compute the sequence-wise balance loss.
        loads: For each routed layer in turn, int64 ``[experts]``: tokens that chose each expert.
        balance_losses: For each routed layer in turn, its balance loss, where asked for.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    dropout: float = 0.0
    generator: torch.Generator | None = None
    stop: threading.Event | None = None
    balance: bool = False
    loads: list[torch.Tensor] = field(default_factory=list)
    balance_losses: list[torch.Tensor] = field(default_factory=list)

    def check(self) -> None:
        """Raise if the pass is to end.

        Raises:
            CancelledError: ``stop`` is set.
        """
        if self.stop is not None and self.stop.is_set():
            raise CancelledError

    def drop(self, x: torch.Tensor, share: float) -> torch.Tensor:
        """Drop ``share`` of the values of ``x`` and scale up the others."""
        if share == 0.0 or self.generator is None:
            return x
        kept = torch.empty_like(x, requires_grad=False)
        return x * kept.bernoulli_(1 - share, generator=self.generator).div_(1 - share)


def _matrix(*shape: int) -> nn.Parameter:
    """Return an uninitialized matrix or stack of matrices."""
    return nn.Parameter(torch.empty(*shape))


def _gain(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size))


class Attention(nn.Module):
    """Multi-head latent attention over whole sequences, in its expanded form."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.nope, self.rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        self.value, self.latent = config["v_head_dim"], config["kv_lora_rank"]
        rank = config["q_lora_rank"]
        queries = self.heads * (self.nope + self.rope)
        self.q_a = None if rank is None else _matrix(rank, hidden)
        self.q_norm = None if rank is None else _gain(rank)
        self.q = _matrix(queries, hidden if rank is None else rank)
        self.kv_a = _matrix(self.latent + self.rope, hidden)
        self.kv_norm = _gain(self.latent)
        self.kv_b = _matrix(self.heads * (self.nope + self.value), self.latent)
        self.o = _matrix(hidden, self.heads * self.value)

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """Attend causally within each sequence of ``x [sequences, tokens, hidden]``."""
        count, length, _ = x.shape
        latent_query = x
        if self.q_a is not None and self.q_norm is not None:
            latent_query = fused.rms_norm(F.linear(x, self.q_a), self.q_norm)
        query = F.linear(latent_query, self.q).view(count, length, self.heads, -1)
        query_nope, query_rope = split(query, self.nope, self.rope)
        query = torch.cat((query_nope, rotate(query_rope, run)), -1)
        latent, key_rope = split(F.linear(x, self.kv_a), self.latent, self.rope)
        key_value = F.linear(fused.rms_norm(latent.contiguous(), self.kv_norm), self.kv_b)
        key_value = key_value.view(count, length, self.heads, -1)
        key_nope, value = split(key_value, self.nope, self.value)
        shared = rotate(key_rope.unsqueeze(2), run).expand(-1, -1, self.heads, -1)
        key = torch.cat((key_nope, shared), -1)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            scale=(self.nope + self.rope) ** -0.5,
        )
        return F.linear(out.transpose(1, 2).reshape(count, length, -1), self.o)


def split(x: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, ...]:
    """Split the last dimension of ``x`` into views of these sizes."""
    views: tuple[torch.Tensor, ...] = torch.split(x, list(sizes), dim=-1)
    return views


def rotate(x: torch.Tensor, run: Pass) -> torch.Tensor:
    """Rotate the pairs ``(2 i, 2 i + 1)`` of ``x [sequences, tokens, heads, rope]``."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = run.cos[:, None], run.sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Dense(nn.Module):
    """A gated feed-forward part."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up = _matrix(2 * inner, hidden)
        self.down = _matrix(hidden, inner)

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """Map ``x [..., hidden]``; ``run`` is not used."""
        return F.linear(fused.swiglu(F.linear(x, self.gate_up)), self.down)


class Sparse(nn.Module):
    """Routed experts, balanced by a bias that only selection sees, and shared experts."""

    correction_bias: torch.Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.experts, self.top_k = config["n_routed_experts"], config["num_experts_per_tok"]
        self.groups, self.top_groups = config["n_group"], config["topk_group"]
        self.normalize = config["norm_topk_prob"]
        self.scale = config["routed_scaling_factor"]
        self.router = _matrix(self.experts, hidden)
        self.gate_up = _matrix(self.experts, 2 * inner, hidden)
        self.down = _matrix(self.experts, hidden, inner)
        self.shared = Dense(hidden, inner * config["n_shared_experts"])
        self.register_buffer("correction_bias", torch.zeros(self.experts))

    @torch.no_grad()
    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the chosen experts, int64 ``[tokens, top_k]``, of ``scores [tokens, experts]``."""
        biased = scores + self.correction_bias
        if self.groups > 1:
            grouped = biased.view(-1, self.groups, self.experts // self.groups)
            group_scores = grouped.topk(2, -1)[0].sum(-1)
            kept = torch.zeros_like(group_scores, dtype=torch.bool)
            kept.scatter_(1, group_scores.topk(self.top_groups, -1)[1], True)
            biased = grouped.masked_fill(~kept[..., None], -math.inf).view(-1, self.experts)
        chosen: torch.Tensor = biased.topk(self.top_k, -1)[1]
        return chosen

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """Map ``x [sequences, tokens, hidden]``; adds this layer's load to ``run``."""
        flat = x.reshape(-1, x.shape[-1])
        scores = torch.sigmoid(flat @ self.router.t())
        chosen = self.choose(scores)
        run.loads.append(torch.bincount(chosen.reshape(-1), minlength=self.experts))
        if run.balance:
            run.balance_losses.append(self.balance_loss(scores, chosen, len(x)))
        weights = scores.gather(1, chosen)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        routed = fused.experts(flat, weights * self.scale, chosen, self.gate_up, self.down)
        output: torch.Tensor = (routed + self.shared(flat, run)).view_as(x)
        return output

    def balance_loss(
        self, scores: torch.Tensor, chosen: torch.Tensor, sequences: int
    ) -> torch.Tensor:
        """Return the sequence-wise balance loss, averaged over the sequences.

        ``sum_i f_i P_i`` with ``f_i`` the share of the tokens that chose expert ``i``, 1 where it
        is the mean, and ``P_i`` its mean normalized score (arXiv 2412.19437, eq. 17 to 20).
        """
        share = (scores / scores.sum(-1, keepdim=True)).view(sequences, -1, self.experts)
        counts = torch.zeros(sequences, self.experts)
        counts.scatter_add_(
            1, chosen.view(sequences, -1), torch.ones(sequences, chosen.numel() // sequences)
        )
        frequency = counts * (self.experts * sequences / chosen.numel())
        loss: torch.Tensor = (frequency * share.mean(1)).sum(-1).mean()
        return loss


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: dict[str, Any], *, sparse: bool) -> None:
        super().__init__()
        self.eps = config["rms_norm_eps"]
        self.input_norm = _gain(config["hidden_size"])
        self.attention = Attention(config)
        self.post_norm = _gain(config["hidden_size"])
        self.feed_forward: Dense | Sparse
        if sparse:
            self.feed_forward = Sparse(config)
        else:
            self.feed_forward = Dense(config["hidden_size"], config["intermediate_size"])

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """Add both parts to the stream ``x [sequences, tokens, hidden]``."""
        run.check()
        added = self.attention(fused.rms_norm(x, self.input_norm, self.eps), run)
        x = x + run.drop(added, run.dropout)
        added = self.feed_forward(fused.rms_norm(x, self.post_norm, self.eps), run)
        output: torch.Tensor = x + run.drop(added, run.dropout)
        return output


class Prediction(nn.Module):
    """One multi-token-prediction layer: the next token's embedding joins the hidden state."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.eps = config["rms_norm_eps"]
        self.embed_norm, self.hidden_norm = _gain(hidden), _gain(hidden)
        self.join = _matrix(hidden, 2 * hidden)
        self.layer = Layer(config, sparse=bool(config["n_routed_experts"]))
        self.head_norm = _gain(hidden)

    def forward(self, embedded: torch.Tensor, hidden: torch.Tensor, run: Pass) -> torch.Tensor:
        """Return what the head turns into logits of the token after the next.

        Args:
            embedded: ``[sequences, tokens, hidden]``, of the token after each position.
            hidden: Like ``embedded``, the main model's state after its final norm.
            run: As for the layers.
        """
        both = (
            fused.rms_norm(embedded, self.embed_norm, self.eps),
            fused.rms_norm(hidden, self.hidden_norm, self.eps),
        )
        x = self.layer(F.linear(torch.cat(both, -1), self.join), run)
        return fused.rms_norm(x, self.head_norm, self.eps)


class TrainingModel(nn.Module):
    """A ``deepseek_v3`` model with at most one prediction layer, all in f32.

    Args:
        config: The keys of ``config.json``.
        seed: Of the initial weights.

    Raises:
        ValueError: a setting that this trainer does not know.
    """

    def __init__(self, config: dict[str, Any], *, seed: int = 0) -> None:
        super().__init__()
        _check(config)
        self.config = dict(config)
        self.eps = config["rms_norm_eps"]
        hidden, vocab = config["hidden_size"], config["vocab_size"]
        experts, dense = config["n_routed_experts"], config["first_k_dense_replace"]
        self.embed = _matrix(vocab, hidden)
        self.layers = nn.ModuleList(
            Layer(config, sparse=bool(experts) and index >= dense)
            for index in range(config["num_hidden_layers"])
        )
        self.norm = _gain(hidden)
        self.head = None if config["tie_word_embeddings"] else _matrix(vocab, hidden)
        self.prediction = Prediction(config) if config["num_nextn_predict_layers"] else None
        self._initialize(seed)

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        """Fill the weights: parts that write to the stream start at zero, so that it starts clean.

        Inputs of a matrix have size 1 after a norm, so a standard deviation of ``0.6 / sqrt(n)``
        gives outputs of size 0.6; the embedding is small because it is also the head.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, value in self.named_parameters():
            if value.ndim < 2:
                continue
            if name in ("embed", "head"):
                deviation = self.config["initializer_range"]
            elif name.endswith((".o", ".down")):
                deviation = 0.0
            elif name.endswith(".router"):
                deviation = value.shape[-1] ** -0.5
            else:
                deviation = 0.6 * value.shape[-1] ** -0.5
            value.normal_(generator=generator).mul_(deviation)

    def rotary(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, f32 ``[length, rope / 2]``."""
        size, theta = self.config["qk_rope_head_dim"], self.config["rope_theta"]
        frequencies = theta ** -(torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(length).float(), frequencies)
        return angles.cos(), angles.sin()

    def begin(self, length: int, **options: Any) -> Pass:  # noqa: ANN401 - the fields of Pass
        """Return the ``Pass`` for sequences of ``length`` tokens."""
        return Pass(*self.rotary(length), **options)

    @property
    def head_weight(self) -> torch.Tensor:
        """The matrix that makes logits: the embedding where the two are tied."""
        return self.embed if self.head is None else self.head

    def hidden(
        self, tokens: torch.Tensor, run: Pass, *, embedding_dropout: float = 0.0
    ) -> torch.Tensor:
        """Return the states after the final norm of ``tokens``, int64 ``[sequences, tokens]``."""
        x = run.drop(F.embedding(tokens, self.embed), embedding_dropout)
        for layer in self.layers:
            x = layer(x, run)
        return fused.rms_norm(x, self.norm, self.eps)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return f32 logits ``[sequences, tokens, vocab]``, without dropout."""
        return self.hidden(tokens, self.begin(tokens.shape[1])) @ self.head_weight.t()

    def routed(self) -> list[tuple[int, Sparse]]:
        """Return the number and the module of every routed layer, the prediction layer last."""
        layers = list(self.layers)
        if self.prediction is not None:
            layers.append(self.prediction.layer)
        return [
            (index, layer.feed_forward)
            for index, layer in enumerate(layers)
            if isinstance(layer, Layer) and isinstance(layer.feed_forward, Sparse)
        ]


def _check(config: dict[str, Any]) -> None:
    """Raise if the configuration asks for what this trainer does not do."""
    fixed = {
        "model_type": "deepseek_v3",
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_scaling": None,
        "rope_interleave": True,
        "attention_bias": False,
        "moe_layer_freq": 1,
    }
    for key, want in fixed.items():
        if config.get(key, want) != want:
            raise ValueError(f"training needs {key!r} to be {want!r}, got {config[key]!r}")
    if config["num_nextn_predict_layers"] not in (0, 1):
        raise ValueError(
            "training knows 0 or 1 prediction layers, got "
            f"num_nextn_predict_layers {config['num_nextn_predict_layers']}"
        )
    experts, groups = config["n_routed_experts"], config["n_group"]
    if experts and (experts % groups or (groups > 1 and experts // groups < 2)):
        raise ValueError(
            f"n_routed_experts {experts} must split into n_group {groups} groups of at least 2"
        )
