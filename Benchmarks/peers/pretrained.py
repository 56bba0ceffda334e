"""Transformers' own models at the sizes of Martlet's pretrained benchmarks, with random weights: eager, float32, no gradients."""

import torch

LLAMA = dict(
    vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
    max_position_embeddings=4096, tie_word_embeddings=True,
)
MINILM = dict(vocab_size=30522, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)


def sentence_lengths(count=1000):
    """Unequal lengths, 4 to 66 tokens, 24 on average, the same on both sides: a linear congruential generator's squares."""
    state, lengths = 1, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        u = state / 2**31
        lengths.append(4 + int(62 * u * u))
    return lengths


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()


def prefill(length):
    model = llama()
    tokens = torch.randint(0, 32000, (1, length))

    @torch.no_grad()
    def run():
        return model(tokens, use_cache=True, logits_to_keep=1).logits

    return run


def decode(context):
    from transformers import DynamicCache

    model = llama()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.randint(0, 32000, (1, context)), past_key_values=cache, logits_to_keep=1)
    token = torch.zeros(1, 1, dtype=torch.long)

    @torch.no_grad()
    def run():
        logits = model(token, past_key_values=cache).logits
        cache.crop(-1)
        return logits

    return run


def minilm(batch, sort):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**MINILM)).eval()
    lengths = sentence_lengths()
    if sort:
        lengths = sorted(lengths, reverse=True)
    batches = []
    for start in range(0, len(lengths), batch):
        part = torch.tensor(lengths[start : start + batch])
        mask = (torch.arange(int(part.max()))[None] < part[:, None]).long()
        batches.append((torch.randint(0, 30522, tuple(mask.shape)), mask))

    @torch.no_grad()
    def run():
        result = []
        for tokens, mask in batches:
            x = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            weights = mask[..., None].float()
            x = (x * weights).sum(1) / weights.sum(1)
            result.append(torch.nn.functional.normalize(x, dim=-1))
        return torch.cat(result)

    return run


CASES = {
    "llama-109m prefill L512": lambda: prefill(512),
    "llama-109m decode C512": lambda: decode(512),
    "minilm 1000 sentences": lambda: minilm(32, sort=False),
    "minilm 1000 sentences sorted": lambda: minilm(32, sort=True),
}
