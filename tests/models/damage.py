"""Ways to damage a checkpoint folder, shared by the tests of this folder."""

import json
import struct

from safetensors.torch import load_file, save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def rewrite(folder, change):
    """Change the tensors of a folder with one file."""
    tensors = load_file(folder / SINGLE)
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors)
    save_file(tensors, folder / SINGLE)


def edit_header(file, change):
    """Change a file's header and leave its bytes as they are."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
