"""Pages of the latent cache: an allocator that deals in page ids and needs no torch.

``PageCache`` is the compiled allocator, ``abyssal.reference.kvcache.PageCache`` the readable one
with the same behavior. ``OutOfPages`` says that a step asked for more pages than are free.
"""

from abyssal._core import OutOfPages, PageCache

__all__ = ["OutOfPages", "PageCache"]
