"""Lets transformers read the checkpoints that Martlet saved, and compares what it computes with the fixtures.

    MARTLET_SAVED_CHECKPOINTS=FOLDER swift test --filter PretrainedSavingTests
    python Tests/Fixtures/check_saved.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file

import checkpoints

tf.logging.set_verbosity_error()
tf.logging.disable_progress_bar()


def load(folder):
    configuration = json.loads((folder / "config.json").read_text())
    if configuration["model_type"] in ("gla", "delta_net"):
        model = checkpoints.LinearModel(configuration)
        state = {}
        for file in folder.glob("model*.safetensors"):
            state |= load_file(file)
        model.load_state_dict(state)
        return model.eval(), False
    model, report = getattr(tf, configuration["architectures"][0]).from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder.name, report)
    return model.eval(), True


@torch.no_grad()
def main(root):
    worst = 0.0
    for folder in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        expected = load_file(checkpoints.ROOT / folder.name / "expected.safetensors")
        names = (
            "input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "pixel_values", "input_features")
        inputs = {key: value.long() if not value.is_floating_point() else value for key, value in expected.items() if key in names}
        model, is_theirs = load(folder)
        output = model(**inputs) if is_theirs else {"logits": model(inputs["input_ids"])}
        key = next(key for key in ("logits", "last_hidden_state") if key in output and key in expected)
        error = ((output[key] - expected[key]).abs().max() / expected[key].abs().max()).item()
        shards = len(list(folder.glob("model*.safetensors")))
        print(f"{folder.name}: {key} differ by {error:.1e}, {shards} file(s)")
        worst = max(worst, error)
    if not worst < 1e-5:
        raise SystemExit(f"the worst difference is {worst}")


if __name__ == "__main__":
    main(sys.argv[1])
