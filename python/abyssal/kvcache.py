"""Pages of the latent cache: an allocator that deals in page ids and needs no torch.

``PageCache`` is the compiled allocator, ``abyssal.reference.kvcache.PageCache`` the readable one
with the same behavior. ``OutOfPages`` says that a step asked for more pages than are free.
``BlockTables`` holds the array that steps write to from one to the next.

``save_prefix`` and ``SavedPrefix`` keep the pages of a prompt's beginning in a file. They enter a
cache as computed ones do:

>>> import numpy as np, os, tempfile
>>> ids, model = [5, 6, 7, 8], {"fingerprint": "my model", "dtype": "float32 [3]"}
>>> content = np.arange(12, dtype=np.float32).view(np.uint8)
>>> with tempfile.TemporaryDirectory() as folder:
...     path = os.path.join(folder, "prefix")
...     save_prefix(path, ids, content, page_size=2, **model)
...     saved = SavedPrefix.open(path, **model)
>>> cache, memory = PageCache(8, 2), np.zeros((8, 24), np.uint8)
>>> handle, cached = cache.open(saved.token_ids)
>>> tables = BlockTables(np.zeros((1, 8), np.int32))
>>> cache.step([handle], [4 - cached], tables)
[]
>>> for place in range(cached // 2, saved.num_pages):
...     memory[tables.array[0, place]] = saved.pages[place : place + 1]
>>> cache.commit([handle], [4], publish=True)
>>> cache.close(handle)
>>> cache.open(ids)[1]
4

``page_identities`` names pages by their content, alike in every process.
"""

from abyssal._core import (
    BlockTables,
    OutOfPages,
    PageCache,
    SavedPrefix,
    page_identities,
    save_prefix,
)

__all__ = [
    "BlockTables",
    "OutOfPages",
    "PageCache",
    "SavedPrefix",
    "page_identities",
    "save_prefix",
]
