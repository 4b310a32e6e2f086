"""The DeepSeek-V3 decoder in the form that trains fast on a processor.

The same function as ``abyssal.models.DeepseekModel.forward_sequence`` (a test compares the two, and
transformers), laid out for training (``parts.py``). Nothing here reads or writes a checkpoint;
``export.py`` gives every tensor its published name.

Source: DeepSeek-V3 (arXiv 2412.19437), sections 2.1 and 2.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from abyssal.train import fused
from abyssal.train.parts import Layer, Pass, Sparse, gain, matrix


class Prediction(nn.Module):
    """One multi-token-prediction layer: the next token's embedding joins the hidden state."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.eps = config["rms_norm_eps"]
        self.embed_norm, self.hidden_norm = gain(hidden), gain(hidden)
        self.join = matrix(hidden, 2 * hidden)
        self.layer = Layer(config, sparse=bool(config["n_routed_experts"]))
        self.head_norm = gain(hidden)

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
        self.embed = matrix(vocab, hidden)
        self.layers = nn.ModuleList(
            Layer(config, sparse=bool(experts) and index >= dense)
            for index in range(config["num_hidden_layers"])
        )
        self.norm = gain(hidden)
        self.head = None if config["tie_word_embeddings"] else matrix(vocab, hidden)
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
