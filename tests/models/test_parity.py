"""The whole model against transformers, on random checkpoints of every family."""

import pytest
import torch
from hugging_face import (
    DECODE_STEPS,
    TOLERANCE,
    Choices,
    PeerChoices,
    compare,
    compare_models,
    count_flips,
    peer_model,
    random_case,
)
from safetensors.torch import save_file
from transformers.modeling_layers import MtpLayer
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3DecoderLayer,
    DeepseekV3RMSNorm,
)

from abyssal import reference
from abyssal.models import load_model
from abyssal.testing.checkpoints import (
    is_packed,
    make_tensors,
    pack_tensors,
    write_checkpoint,
    write_folder,
)
from abyssal.testing.families import FAMILIES, tiny_config
from abyssal.testing.steps import Sequence

CASES = 240  # a multiple of the six families
FAST_CASES = 24


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the products are too small to share
    yield
    torch.set_num_threads(threads)


def test_logits_and_greedy_tokens_equal_transformers(tmp_path, full_profile, capsys):
    cases = [random_case(seed) for seed in range(CASES if full_profile else FAST_CASES)]
    assert {case.family for case in cases} == set(FAMILIES)
    assert sum(case.prompt_tokens >= 256 for case in cases) * 6 > len(cases)
    outcomes = [compare(case, tmp_path) for case in cases]
    worst = max(outcomes, key=lambda outcome: outcome.error)
    with capsys.disabled():
        print(
            f"\n  {len(cases)} configurations, prefill and {DECODE_STEPS} steps: largest logit "
            f"error {worst.error:.1e}, {sum(o.flips for o in outcomes)} tokens routed differently"
        )
    assert worst.error <= TOLERANCE
    assert sum(outcome.tokens for outcome in outcomes) == 0


def random_ids(count, seed, vocab=128):
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_cut_anywhere_gives_what_one_step_gives(family, tmp_path, seed):
    write_checkpoint(tmp_path, family=family, seed=seed)
    model, _ = load_model(tmp_path)
    ids = random_ids(530, seed)
    whole = Sequence(model, 520, 530).step(ids)
    parts = Sequence(model, 520, 530)
    pieces = [ids[:1], ids[1:200], ids[200:257], ids[257:515], ids[515:520]]
    cut = torch.cat([parts.step(piece) for piece in pieces + [[each] for each in ids[520:]]])
    # The same sums over at most a few hundred f32 terms, in products of another shape.
    assert (cut - whole).abs().max() <= 2e-5 * whole.abs().max().clamp(min=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_sequences_for_training_give_what_the_cached_steps_give(family, tmp_path, seed):
    write_checkpoint(tmp_path, family=family, seed=seed)
    model, _ = load_model(tmp_path)
    ids = random_ids(300, seed)
    with torch.no_grad():
        trained = model.logits(model.forward_sequence(torch.tensor([ids, ids])))
    served = Sequence(model, 300, 300).step(ids)
    assert (trained - served).abs().max() <= 2e-5 * served.abs().max().clamp(min=1)


def test_gradients_of_whole_sequences_reach_every_main_weight_but_no_bias(tmp_path, seed):
    write_checkpoint(tmp_path, seed=seed, num_experts_per_tok=8, topk_group=4)
    model, _ = load_model(tmp_path)
    model.requires_grad_(True)
    ids = torch.tensor([random_ids(60, seed)])
    model.logits(model.forward_sequence(ids)).square().mean().backward()
    lacking = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert lacking == []
    assert not [name for name, _ in model.named_parameters() if "correction_bias" in name]


@pytest.mark.parametrize("packing", ["fp8", "ue8m0", "mxfp4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_in_f32_equal_their_dequantized_values(family, packing, tmp_path, seed):
    # Sizes that leave ragged blocks in both directions.
    sizes = {"hidden_size": 160, "intermediate_size": 200, "moe_intermediate_size": 96}
    config = write_checkpoint(
        tmp_path / "packed", family=family, seed=seed, packing=packing, kv_lora_rank=64, **sizes
    )
    packed, loaded = load_model(tmp_path / "packed", dtype="float32")
    assert loaded.quantization.method == ("mxfp4" if packing == "mxfp4" else "fp8")
    tensors = make_tensors(config, seed=seed)
    stored = pack_tensors(tensors, packing, torch.float32)
    for name in [name for name in tensors if is_packed(name)]:
        if f"{name}_scale_inv" in stored:
            scales = stored[f"{name}_scale_inv"]
            args = (stored[name], scales, (128, 128))
            tensors[name] = reference.dequantize_fp8(*args, dtype=torch.float32)
        elif f"{name}_scale" in stored:
            scales = stored[f"{name}_scale"]
            tensors[name] = reference.dequantize_mxfp4(stored[name], scales, dtype=torch.float32)
    write_folder(tmp_path / "plain", {**config, "quantization_config": None}, tensors)
    peer = peer_model(config, tmp_path / "plain")
    outcome = compare_models(packed, peer, random_ids(280, seed))
    assert outcome.error <= TOLERANCE
    assert outcome.tokens == 0


def test_bf16_is_as_near_to_f32_as_transformers(tmp_path, full_profile, capsys):
    mine, theirs, flips, peer_flips, tokens = 0.0, 0.0, 0, 0, 0
    for number in range(24 if full_profile else 6):
        family = list(FAMILIES)[number % len(FAMILIES)]
        sizes = {"hidden_size": 128, "torch_dtype": "bfloat16"}
        config = write_checkpoint(tmp_path, family=family, seed=number, **sizes)
        ids = random_ids(300, number)
        exact_choices, choices = Choices(), Choices()
        exact = run(load_model(tmp_path, dtype="float32")[0], ids, exact_choices)
        error = (run(load_model(tmp_path)[0], ids, choices) - exact).abs().mean()
        peer = peer_model(config, tmp_path, torch.bfloat16)
        peer_choices = PeerChoices(peer)
        with torch.no_grad():
            peer_error = (peer(torch.tensor([ids])).logits[0].float() - exact).abs().mean()
        assert error <= 1.1 * peer_error, family
        mine, theirs = mine + float(error), theirs + float(peer_error)
        flips += count_flips(choices.experts, [(each, None) for each in exact_choices.experts])
        exact_pairs = [(each, None) for each in exact_choices.experts]
        peer_flips += count_flips([pair[0] for pair in peer_choices.choices], exact_pairs)
        tokens += sum(len(each) for each in exact_choices.experts)
    assert mine <= 0.9 * theirs
    with capsys.disabled():
        print(
            f"\n  bf16: mean logit error {mine / theirs:.2f} times that of transformers; of "
            f"{tokens} choices of experts {flips} differ from f32, {peer_flips} with transformers"
        )


def run(model, ids, on_layer):
    return Sequence(model, len(ids), len(ids)).step(ids, on_layer)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fused", [False, True])
def test_what_transformers_writes_loads_with_either_layout_of_experts(
    family, fused, tmp_path, seed
):
    config = tiny_config(family)
    write_folder(tmp_path / "first", config, make_tensors(config, seed=seed))
    peer = peer_model(config, tmp_path / "first")
    peer.save_pretrained(tmp_path / "second")
    if fused:
        state = {name: value.contiguous() for name, value in peer.state_dict().items()}
        assert any(name.endswith("experts.gate_up_proj") for name in state)
        save_file(state, tmp_path / "second" / "model.safetensors")
    model, _ = load_model(tmp_path / "second")
    outcome = compare_models(model, peer, random_ids(40, seed))
    assert outcome.error <= TOLERANCE
    assert outcome.tokens == 0


def test_the_prediction_layer_equals_transformers(tmp_path, seed):
    config = write_checkpoint(tmp_path, seed=seed, num_mtp_layers=1)
    model, _ = load_model(tmp_path, num_mtp_layers=1)
    peer = peer_model(config, tmp_path)
    layer = MtpLayer(peer.config.get_mtp_config(), DeepseekV3DecoderLayer, DeepseekV3RMSNorm, 0)
    tensors = make_tensors(config, seed=seed, num_mtp_layers=1)
    layer.load_state_dict(peer_prediction_weights(tensors, config))
    ids = torch.tensor([random_ids(50, seed)])
    with torch.no_grad():
        hidden = peer.model(ids[:, :-1]).last_hidden_state
        positions = torch.arange(49)[None]
        want = layer(
            peer.model.embed_tokens(ids[:, 1:]),
            hidden,
            peer.model.rotary_emb(hidden, positions),
            torch.full((49, 49), float("-inf")).triu(1)[None, None],
            positions,
            None,
        )
        got = model.predict_further(model.forward_sequence(ids[:, :-1]), ids[:, 1:])
    assert (got - want).abs().max() <= TOLERANCE * want.abs().max().clamp(min=1)
    assert (model.logits(got) - peer.lm_head(want)).abs().max() <= TOLERANCE * 10


def peer_prediction_weights(tensors, config):
    """Rename the published tensors of the prediction layer to what transformers calls them."""
    prefix = f"model.layers.{config['num_hidden_layers']}."
    held = {name.removeprefix(prefix): value for name, value in tensors.items() if prefix in name}
    names = {"shared_head.norm.weight": "post_norm.weight"}
    weights = {}
    for name, value in held.items():
        if name.split(".")[0] in ("enorm", "hnorm", "eh_proj", "shared_head"):
            weights[names.get(name, name)] = value
        elif ".experts." not in name:
            weights[f"mtp_block.{name}"] = value
    experts = [
        {part: held[f"mlp.experts.{index}.{part}_proj.weight"] for part in ("gate", "up", "down")}
        for index in range(config["n_routed_experts"])
    ]
    gate_up = [torch.cat((each["gate"], each["up"])) for each in experts]
    weights["mtp_block.mlp.experts.gate_up_proj"] = torch.stack(gate_up)
    weights["mtp_block.mlp.experts.down_proj"] = torch.stack([each["down"] for each in experts])
    return weights
