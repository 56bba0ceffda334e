"""Writes Tests/MartletModelsTests/Fixtures/front_ends.safetensors: what `transformers` and Pillow make of audio, images, positions and
distances.

    python Tests/Fixtures/front_ends.py
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file
from transformers.models.t5.modeling_t5 import T5Attention

ROOT = Path(__file__).resolve().parents[1] / "MartletModelsTests" / "Fixtures"
torch.set_num_threads(1)
tf.logging.set_verbosity_error()
result = {}

# T5's buckets at every distance from -600 to 600 (key minus query).
for buckets, furthest in [(32, 128), (16, 20), (64, 256), (32, 512), (20, 77)]:
    for bidirectional in (True, False):
        table = T5Attention._relative_position_bucket(torch.arange(-600, 601), bidirectional, buckets, furthest)
        result[f"buckets.{buckets}.{furthest}.{'both' if bidirectional else 'past'}"] = table.to(torch.int16)

# Log-mel frames of one second: a chirp with noise, kept as the integers that a WAV file would hold.
generator = torch.Generator().manual_seed(7)
time = torch.arange(16000, dtype=torch.float64) / 16000
chirp = 0.6 * torch.sin(2 * torch.pi * (100 * time + 3500 * time**2)) + 0.05 * torch.randn(16000, generator=generator, dtype=torch.float64)
samples = (chirp.clamp(-1, 1) * 32767).round().to(torch.int16)
result["audio"] = samples
for bands in (80, 128):
    extractor = tf.WhisperFeatureExtractor(feature_size=bands)
    frames = torch.from_numpy(extractor((samples.to(torch.float32) / 32768).numpy(), sampling_rate=16000)["input_features"])[0]
    assert frames.shape == (bands, 3000) and (frames[:, 110:] == frames[0, 2999]).all()
    result[f"mel.{bands}"] = frames[:, :110].contiguous()

# An image, and what Pillow's filters and the image processors make of it.
height, width = 23, 37
image = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
image[4:12, 5:30] = torch.tensor([250, 20, 130], dtype=torch.uint8)
picture = Image.fromarray(image.numpy())
result["image"] = image
for filter in (0, 1, 2, 3, 4, 5):
    for size in ((16, 9), (50, 31), (37, 40), (11, 23)):
        result[f"resized.{filter}.{size[0]}.{size[1]}"] = torch.from_numpy(np.asarray(picture.resize(size, filter)).copy())
result["grey"] = torch.from_numpy(np.asarray(picture.convert("L")).copy())
processors = {
    "vit": tf.ViTImageProcessorPil(size={"height": 24, "width": 24}),
    "deit": tf.DeiTImageProcessorPil(size={"height": 28, "width": 28}, crop_size={"height": 24, "width": 24}),
    "padded": tf.DeiTImageProcessorPil(size={"height": 17, "width": 30}, crop_size={"height": 24, "width": 24}),
    "edge": tf.DeiTImageProcessorPil(size={"shortest_edge": 26}, crop_size={"height": 23, "width": 25}),
    "longest": tf.DeiTImageProcessorPil(size={"shortest_edge": 26, "longest_edge": 33}, do_center_crop=False, do_normalize=False),
}
configurations = {}
for name, processor in processors.items():
    result[f"pixels.{name}"] = torch.from_numpy(np.asarray(processor(picture, return_tensors="np")["pixel_values"])).to(torch.float32)
    configurations[name] = processor.to_dict()
(ROOT / "preprocessors.json").write_text(json.dumps(configurations, indent=1, sort_keys=True) + "\n")

# Files by Pillow, and what it reads from them.
folder = ROOT / "images"
folder.mkdir(exist_ok=True)
veil = Image.fromarray(torch.randint(0, 256, (height, width), generator=generator, dtype=torch.uint8).numpy())
transparent = picture.copy()
transparent.putalpha(veil)
palette = picture.quantize(16)
smooth = picture.resize((70, 45), Image.BICUBIC)
files = {
    "colour.png": (picture, {}),
    "transparent.png": (transparent, {}),
    "palette.png": (palette, {"transparency": 3}),
    "grey.png": (picture.convert("L"), {}),
    "bits.png": (picture.convert("1"), {}),
    "halved.jpg": (smooth, {"quality": 85}),
    "full.jpg": (smooth, {"quality": 95, "subsampling": 0}),
    "progressive.jpg": (smooth, {"quality": 70, "progressive": True}),
    "grey.jpg": (smooth.convert("L"), {}),
    "cmyk.jpg": (picture.convert("CMYK"), {}),
}
for name, (content, options) in files.items():
    content.save(folder / name, **options)
    if name != "cmyk.jpg":
        read = Image.open(folder / name)
        read = read.convert("L" if read.mode in ("L", "1") else "RGB")
        result[f"file.{name}"] = torch.from_numpy(np.asarray(read).copy())

# Images of another size than the checkpoints': positions are interpolated.
with torch.no_grad():
    for name, kind in (("vit", tf.ViTForImageClassification), ("deit", tf.DeiTForImageClassificationWithTeacher)):
        model = kind.from_pretrained(ROOT / "checkpoints" / name).eval()
        for size in ((32, 40), (24, 26), (11, 83)):
            pixels = torch.randn(1, 3, *size, generator=generator)
            key = f"interpolated.{name}.{size[0]}.{size[1]}"
            result[f"{key}.pixels"] = pixels
            result[f"{key}.logits"] = model(pixel_values=pixels, interpolate_pos_encoding=True).logits

save_file({key: value.contiguous() for key, value in result.items()}, ROOT / "front_ends.safetensors")
print(sum(value.numel() * value.element_size() for value in result.values()), "bytes")
