"""What a training run is made of: the architecture and the schedule, checked before it starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: The architecture of the bundled model, in the keys of ``config.json``.
ARCHITECTURE: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,
    "intermediate_size": 128,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_interleave": True,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


@dataclass(frozen=True)
class Phase:
    """A part of the run with one sequence length.

    Attributes:
        until: Where it ends, as a share of all steps.
        length: Tokens of a sequence.
    """

    until: float
    length: int


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes; two runs with equal settings are equal.

    Attributes:
        architecture: ``config.json`` of the model.
        steps: Optimizer steps.
        seed: Of the weights, the order of the documents and the dropout.
        batch_tokens: Tokens of a step.
        microbatch_tokens: Tokens of one forward pass; the gradients are added in a fixed order.
        phases: Sequence lengths over the run: short ones are cheap, but a model that has not seen
            its last positions in training reads them badly.
        learning_rate: Peak for matrices (Muon).
        embedding_rate: Peak for the embedding and the gains (Adam).
        router_rate: Peak for the routers (Adam).
        warmup: Steps until the peak; from there the rates fall in a line to zero.
        weight_decay: Share of a matrix that a step at rate 1 would remove.
        momentum: Of Muon.
        dropout: Of what each layer part adds to the residual stream, from the middle of the run;
            until then it rises in a line from zero, because the first passes over a text are not
            the ones that learn it by heart.
        embedding_dropout: Of the embedded tokens; rises like ``dropout``.
        balance_rate: Step of the routers' correction bias; falls with the learning rate.
        balance_loss: Weight of the sequence-wise balance loss.
        prediction_share: Share of the sequences that also train the prediction layer.
        prediction_weight: Weight of its loss before and after ``prediction_switch``.
        prediction_switch: When its weight changes, as a share of all steps.
    """

    architecture: dict[str, Any] = field(default_factory=lambda: dict(ARCHITECTURE))
    steps: int = 1000
    seed: int = 0
    batch_tokens: int = 4096
    microbatch_tokens: int = 2048
    phases: tuple[Phase, ...] = (
        Phase(0.4, 256),
        Phase(0.65, 512),
        Phase(0.9, 1024),
        Phase(1.0, 2048),
    )
    learning_rate: float = 6e-3
    embedding_rate: float = 6e-3
    router_rate: float = 1.5e-3
    warmup: int = 40
    weight_decay: float = 0.1
    momentum: float = 0.95
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    balance_rate: float = 3e-3
    balance_loss: float = 1e-4
    prediction_share: float = 0.25
    prediction_weight: tuple[float, float] = (0.3, 0.1)
    prediction_switch: float = 0.6

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have.

        Raises:
            ValueError: naming the setting, its value and what is allowed.
        """
        for name in ("steps", "batch_tokens", "microbatch_tokens", "warmup"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_tokens % self.microbatch_tokens:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} must be a multiple of microbatch_tokens "
                f"{self.microbatch_tokens}"
            )
        if not self.phases or self.phases[-1].until < 1:
            raise ValueError("the last phase must last until 1.0, the end of the run")
        for phase in self.phases:
            if phase.length < 2 or self.microbatch_tokens % phase.length:
                raise ValueError(
                    f"a phase's length must divide microbatch_tokens {self.microbatch_tokens} and "
                    f"be at least 2, got {phase.length}"
                )
            if phase.length > self.architecture["max_position_embeddings"]:
                raise ValueError(
                    f"a phase's length of {phase.length} is beyond the model's "
                    f"{self.architecture['max_position_embeddings']} positions"
                )
        for name in ("dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.prediction_share <= 1:
            raise ValueError(f"prediction_share must be in [0, 1], got {self.prediction_share}")

    @property
    def num_microbatches(self) -> int:
        """Forward passes of a step."""
        return self.batch_tokens // self.microbatch_tokens

    def length(self, step: int) -> int:
        """Tokens of a sequence in step ``step``, counted from 0."""
        share = step / self.steps
        return next(phase.length for phase in self.phases if share < phase.until)

    def rate(self, step: int) -> float:
        """Share of the peak learning rates in step ``step``, counted from 0."""
        return min(1.0, (step + 1) / self.warmup) * (1 - step / self.steps)

    def dropped(self, step: int) -> float:
        """Share of the full dropout in step ``step``, counted from 0."""
        return min(1.0, 2 * step / self.steps)

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Read what ``to_json`` wrote, or a part of it: what is missing keeps its default.

        Raises:
            ValueError: an unknown setting, or as the constructor.
        """
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown settings {unknown}; known are {sorted(known)}")
        values = dict(values)
        if "phases" in values:
            values["phases"] = tuple(Phase(**each) for each in values["phases"])
        if "prediction_weight" in values:
            before, after = values["prediction_weight"]
            values["prediction_weight"] = (before, after)
        if "architecture" in values:
            values["architecture"] = {**ARCHITECTURE, **values["architecture"]}
        return cls(**values)
