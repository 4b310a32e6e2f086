"""``abyssal inspect``: what a checkpoint is, from its configuration and its headers alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abyssal.cli.options import JsonOption, find_model
from abyssal.models.hub import human_bytes

if TYPE_CHECKING:
    from abyssal.models import Checkpoint, ModelConfig


def inspect(
    path: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint folder or owner/name; default: the bundled model.", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also read every tensor and look for NaN and infinity.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Describe a checkpoint without loading it.

    Reads the configuration and the headers of the weight files: architecture, parameters in all and
    active, bytes by type, latent cache bytes per token. With --check it reads every tensor; a value
    that is not finite makes the exit code 1.
    """
    folder = find_model(path)
    from abyssal.cli.console import loading, results, table
    from abyssal.models import ModelConfig, check_finite, open_checkpoint

    config = ModelConfig.from_folder(folder)
    report = describe(config, open_checkpoint(folder))
    bad = []
    if check:
        with loading(folder.name) as progress:
            bad = check_finite(folder, progress)
        report["not_finite"] = [
            {"tensor": each.name, "nan": each.num_nan, "infinite": each.num_infinite}
            for each in bad
        ]
    if as_json:
        print(json.dumps({"path": str(folder), **report}, indent=2))
    else:
        rows = [("checkpoint", str(folder)), *_rows(report)]
        if check and not bad:
            rows.append(("values", "all finite"))
        rows += [
            (
                "not finite",
                f"{each.name}: {each.num_nan} NaN, {each.num_infinite} infinite "
                f"of {each.num_values}",
            )
            for each in bad
        ]
        table(results(), rows)
    if bad:
        raise typer.Exit(1)


def describe(config: ModelConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Collect what ``inspect`` reports.

    Args:
        config: the architecture.
        checkpoint: the folder's tensors, by their headers.

    Returns:
        Numbers and names only, ready for JSON. Parameters are counted from the architecture, so
        that packed weights and copies do not count twice; bytes are the files'.
    """
    from abyssal.cli.size import Sizes

    sizes = Sizes.of(config)
    by_type: dict[str, dict[str, int]] = {}
    for entry in checkpoint.entries.values():
        row = by_type.setdefault(
            str(entry.dtype).removeprefix("torch."), {"tensors": 0, "bytes": 0}
        )
        row["tensors"] += 1
        row["bytes"] += entry.num_bytes
    width = 4 if str(config.dtype) == "torch.float32" else 2
    return {
        "architecture": {
            "model_type": config.model_type,
            "layers": config.num_layers,
            "expert_layers": sum(config.moe_layers),
            "hidden_size": config.hidden_size,
            "heads": config.num_heads,
            "vocabulary": config.vocab_size,
            "query_latent": config.q_lora_rank,
            "latent": config.kv_lora_rank,
            "rotary_key": config.rope_dim,
            "context": config.max_position,
            "experts": config.num_experts,
            "shared_experts": config.num_shared_experts,
            "experts_per_token": config.top_k,
            "groups": config.num_groups,
            "kept_groups": config.top_groups,
            "scoring": config.scoring,
            "prediction_layers": config.num_mtp_layers,
            "quantization": config.quantization.method if config.quantization else None,
        },
        "parameters": {
            "all": sizes.parameters,
            "active": sizes.active_parameters,
            "prediction_layers": config.num_mtp_layers * sizes.mtp_parameters,
        },
        "files": {
            "count": len({entry.file for entry in checkpoint.entries.values()}),
            "bytes": checkpoint.num_bytes,
            "by_type": by_type,
        },
        "cache_bytes_per_token": {
            "type": "float32" if width == 4 else "bfloat16",
            "latent": sizes.latent_bytes(width),
            "expanded": sizes.expanded_bytes(width),
        },
    }


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Say the report in words."""
    from abyssal.cli.size import human_count

    shape, count, cache = (
        report["architecture"],
        report["parameters"],
        report["cache_bytes_per_token"],
    )
    query = f"query latent {shape['query_latent']}" if shape["query_latent"] else "no query latent"
    share = 100 * count["active"] / count["all"]
    rows = [
        (
            "architecture",
            f"{shape['model_type']}: {shape['layers']} layers, {shape['expert_layers']} with "
            f"experts; hidden size {shape['hidden_size']}, {shape['heads']} heads, "
            f"vocabulary {shape['vocabulary']:,}",
        ),
        ("attention", f"latent {shape['latent']} and rotary key {shape['rotary_key']}, {query}"),
    ]
    if shape["experts"]:
        groups = (
            f" from {shape['kept_groups']} of {shape['groups']} groups"
            if shape["groups"] > 1
            else ""
        )
        rows.append(
            (
                "experts",
                f"{shape['experts_per_token']} of {shape['experts']} a token{groups} "
                f"by {shape['scoring']}, "
                f"and {shape['shared_experts']} shared",
            )
        )
    rows += [
        ("context", f"{shape['context']:,} tokens"),
        (
            "parameters",
            f"{human_count(count['all'])}, {human_count(count['active'])} active ({share:.0f}%)",
        ),
    ]
    if shape["prediction_layers"]:
        rows.append(
            (
                "prediction",
                f"{shape['prediction_layers']} multi-token layer announced, "
                f"{human_count(count['prediction_layers'])} more parameters",
            )
        )
    rows.append(
        (
            "weights",
            f"{human_bytes(report['files']['bytes'])} in {report['files']['count']} file(s)",
        )
    )
    for name, row in sorted(report["files"]["by_type"].items(), key=lambda item: -item[1]["bytes"]):
        rows.append((f"  {name}", f"{human_bytes(row['bytes'])} in {row['tensors']:,} tensors"))
    rows.append(
        (
            "cache",
            f"{cache['latent']:,} bytes a token in {cache['type']}; "
            f"expanded keys and values would take "
            f"{cache['expanded']:,} ({cache['expanded'] / cache['latent']:.1f} times)",
        )
    )
    return rows
