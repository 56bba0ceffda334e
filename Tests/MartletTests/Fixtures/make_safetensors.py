"""Writes the safetensors fixtures with the reference implementation.

    python make_safetensors.py            # into the folder of this script

Needs torch and safetensors (`pip install torch safetensors numpy`). The values are simple functions of the index, which the
Swift tests compute again.
"""

import json
import pathlib

import torch
from safetensors.torch import save, save_file

folder = pathlib.Path(__file__).parent


def ramp(shape, dtype):
    count = 1
    for size in shape:
        count *= size
    values = torch.arange(count, dtype=torch.float64) * 0.5 - 1
    if dtype == torch.bool:
        values = torch.arange(count) % 3 == 0
    elif not dtype.is_floating_point and not dtype.is_complex:
        values = torch.arange(count) % 100
    elif dtype.is_complex:
        values = torch.complex(values, -values)
    return values.to(dtype).reshape(shape)


dtypes = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "uint32": torch.uint32,
    "int64": torch.int64,
    "uint64": torch.uint64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "float8e5m2": torch.float8_e5m2,
    "float8e4m3fn": torch.float8_e4m3fn,
    "complex64": torch.complex64,
}
tensors = {name: ramp((2, 3), dtype) for name, dtype in dtypes.items()}
tensors["scalar"] = torch.tensor(3.5)
tensors["empty"] = torch.zeros(0, 4)
tensors["naïve.😀"] = ramp((5,), torch.float32)
save_file(tensors, folder / "every_dtype.safetensors", metadata={"format": "pt", "note": 'a "quoted" line\nand π'})

# The same bytes behind a header whose length is odd: no tensor wider than a byte is aligned in the file.
plain = save({"x": ramp((4,), torch.float32), "y": ramp((3,), torch.int64)})
length = int.from_bytes(plain[:8], "little")
header = plain[8 : 8 + length].rstrip(b" ")
header += b" " * (1 - len(header) % 2)
(folder / "misaligned.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + plain[8 + length :])

sharded = folder / "sharded"
sharded.mkdir(exist_ok=True)
shards = {
    "model-00001-of-00002.safetensors": {"a": ramp((2, 2), torch.float32), "b": ramp((3,), torch.int64)},
    "model-00002-of-00002.safetensors": {"c": ramp((1,), torch.bfloat16)},
}
for name, content in shards.items():
    save_file(content, sharded / name, metadata={"format": "pt"})
index = {
    "metadata": {"total_size": sum(t.numel() * t.element_size() for content in shards.values() for t in content.values())},
    "weight_map": {tensor: name for name, content in shards.items() for tensor in content},
}
(sharded / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
