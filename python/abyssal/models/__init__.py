"""Architectures, their configurations, and the loader that fills them from a checkpoint."""

from abyssal.models.config import ModelConfig
from abyssal.models.deepseek import DeepseekModel
from abyssal.models.loader import check_finite, load_model, open_checkpoint

__all__ = ["DeepseekModel", "ModelConfig", "check_finite", "load_model", "open_checkpoint"]
