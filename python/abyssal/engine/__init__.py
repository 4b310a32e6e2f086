"""The engine: requests in, tokens out, over a paged latent cache.

``sampling_params`` and ``outputs`` are the interface, ``validate`` judges requests, ``scheduler``
deals out steps and pages, ``runner`` calls the model, ``sampler`` draws tokens, ``detokenizer``
turns them into text, ``core`` ties these together and ``engine`` is the door.
"""

from abyssal.engine.engine import LLM
from abyssal.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from abyssal.engine.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
]
