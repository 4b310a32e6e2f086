"""The comparison with transformers: random checkpoints of every family, run by both."""

import copy
import inspect
import random
from dataclasses import dataclass

import torch
import transformers

from abyssal.models import load_model
from abyssal.testing.checkpoints import make_tensors, write_folder
from abyssal.testing.families import FAMILIES, tiny_config
from abyssal.testing.steps import Sequence

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

DECODE_STEPS = 32
# What the two programs may differ by, relative to the larger of 1 and the largest logit: f32 sums
# of at most a few hundred terms in another order leave about 1e-6 in each layer.
TOLERANCE = 1e-4
# Two tokens whose logits lie closer than twice the tolerance may change places.
TOKEN_GAP = 2e-4


@dataclass
class Case:
    """A random checkpoint and a prompt."""

    family: str
    config: dict
    seed: int
    prompt: list

    @property
    def prompt_tokens(self):
        return len(self.prompt)


@dataclass
class Outcome:
    """How far two runs are apart."""

    error: float  # largest logit difference over the larger of 1 and the largest logit
    tokens: int  # greedy tokens that differ although the best two logits do not tie
    flips: int  # tokens routed to other experts because two scores tie


def random_case(seed):
    """Draw the sizes of a checkpoint: mostly small, some with the real head dimensions."""
    rng = random.Random(seed)
    family = list(FAMILIES)[seed % len(FAMILIES)]
    base = FAMILIES[family]
    heads = rng.randint(1, 5)
    layers = rng.randint(1, 3)
    groups = rng.choice([2, 4]) if base.get("n_group", 1) > 1 else 1
    experts = groups * rng.randint(2, 6)
    kept = rng.randint(1, groups)
    real = rng.random() < 0.15
    glm = family == "glm-4.7-flash"
    changes = {
        "vocab_size": rng.randint(30, 300),
        "hidden_size": heads * rng.randint(8, 40),
        "intermediate_size": rng.randint(20, 150),
        "moe_intermediate_size": rng.randint(8, 70),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": None if base.get("q_lora_rank", 1) is None else rng.randint(8, 64),
        "kv_lora_rank": 512 if real else 2 * rng.randint(4, 48),
        "qk_nope_head_dim": (192 if glm else 128) if real else 2 * rng.randint(2, 24),
        "qk_rope_head_dim": 64 if real else 2 * rng.randint(1, 16),
        "v_head_dim": (256 if glm else 128) if real else rng.randint(4, 48),
        "n_routed_experts": experts,
        "n_shared_experts": rng.randint(1, 3),
        "num_experts_per_tok": rng.randint(1, min(6, kept * experts // groups)),
        "n_group": groups,
        "topk_group": kept,
        "routed_scaling_factor": rng.choice([base["routed_scaling_factor"], 1.0, 2.0]),
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        "tie_word_embeddings": rng.random() < 0.2,
    }
    first_dense = rng.randint(0, layers)
    if glm:
        changes["mlp_layer_types"] = rng.choices(["dense", "sparse"], k=layers)
    else:
        changes["first_k_dense_replace"] = first_dense
    if base.get("rope_scaling"):
        original = rng.choice([16, 64, 4096])
        changes["rope_scaling"] = {
            **base["rope_scaling"],
            "original_max_position_embeddings": original,
            "factor": rng.choice([2.0, 8.0, 40.0]),
        }
        drop = rng.random()
        if drop < 0.15:
            del changes["rope_scaling"]["mscale"], changes["rope_scaling"]["mscale_all_dim"]
        elif drop < 0.3:
            changes["rope_scaling"]["mscale"] = 0.5
    config = tiny_config(family, **changes)
    long = rng.random() < 0.25
    length = rng.randint(256, 600) if long else rng.randint(1, 60)
    prompt = [rng.randrange(config["vocab_size"]) for _ in range(length)]
    return Case(family, config, seed, prompt)


def peer_model(config, folder, dtype=torch.float32):
    """Load the checkpoint with transformers, which knows Kimi K2 as DeepSeek-V3."""
    config = copy.deepcopy(config)
    if config["model_type"] == "kimi_k2":
        config["model_type"] = "deepseek_v3"
    config.pop("quantization_config", None)
    settings = transformers.AutoConfig.for_model(**config)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        config=settings,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()


def cache_name(peer):
    """Return what this release of transformers calls the cache: 5.24 has renamed it."""
    parameters = inspect.signature(peer.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def compare(case, folder):
    """Write the checkpoint, run both programs on it, and measure the difference."""
    write_folder(folder, case.config, make_tensors(case.config, seed=case.seed))
    model, _ = load_model(folder, dtype="float32")
    return compare_models(model, peer_model(case.config, folder), case.prompt)


def compare_models(model, peer, prompt, steps=DECODE_STEPS):
    """Run a prompt and the decode steps after it through both; the peer's greedy token goes on."""
    sequence = Sequence(model, len(prompt), len(prompt) + steps)
    mine, theirs = Choices(), PeerChoices(peer)
    error, tokens = 0.0, 0
    cache, ids = cache_name(peer), list(prompt)
    past = None
    for _ in range(steps + 1):
        with torch.no_grad():
            result = peer(torch.tensor([ids]), **{cache: past}, use_cache=True)
        past, want = getattr(result, cache), result.logits[0].float()
        got = sequence.step(ids, mine)
        error = max(error, float(((got - want).abs().max()) / want.abs().max().clamp(min=1)))
        best = want.topk(2)
        differs = got.argmax(-1) != best.indices[:, 0]
        tokens += int((differs & (best.values[:, 0] - best.values[:, 1] >= TOKEN_GAP)).sum())
        ids = [int(best.indices[-1, 0])]
    return Outcome(error, tokens, count_flips(mine.experts, theirs.choices))


class Choices:
    """Records which experts this package chose, layer by layer."""

    def __init__(self):
        self.experts = []

    def __call__(self, layer, name, tensor):
        if name == "experts":
            self.experts.append(tensor.sort(-1).values.long())


class PeerChoices:
    """Records which experts transformers chose, and how close the next one was."""

    def __init__(self, peer):
        self.choices = []
        for module in peer.modules():
            if type(module).__name__.endswith("TopkRouter"):
                module.register_forward_hook(self.record)

    def record(self, _module, _inputs, output):
        self.choices.append((output[2].sort(-1).values, output[0]))


def count_flips(mine, theirs):
    """Count tokens whose experts differ: each is a tie of two scores, or a wrong router."""
    return sum(int((a != b[0]).any(-1).sum()) for a, b in zip(mine, theirs, strict=True))
