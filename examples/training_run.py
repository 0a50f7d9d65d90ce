# %% [markdown]
# # A training run
#
# A small byte-level model is trained here, in a few seconds. `TrainingWatch` says how far it has moved while it trains,
# and the saved checkpoints are followed afterwards. In a loop of your own, only the lines with `watch` are new.

# %%
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

import klscale
from klscale.inputs.texts import is_held_out, pocket_corpus

STEPS, EVERY = 110, 10
texts = klscale.load_texts("pocket")  # from this Python installation; nothing is downloaded
texts = klscale.TextSet.from_texts("pocket-60", texts.texts[:60], document=texts.document[:60])

# %% [markdown]
# A tokenizer whose tokens are bytes, and a model with two layers.

# %%
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
bytes_alone = Tokenizer(models.BPE(vocab={character: n for n, character in enumerate(alphabet)}, merges=[]))
bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
bytes_alone.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone)

torch.manual_seed(0)
model = GPTNeoXForCausalLM(
    GPTNeoXConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
    )
)  # fmt: skip
source = "".join(text for name, text, domain in pocket_corpus()[-60:] if not is_held_out(name, domain))
ids = torch.tensor(tokenizer(source[:400_000])["input_ids"])

# %% [markdown]
# Training. Each measurement is KL from the one before and from the start, in bits per byte.

# %%
watch = klscale.TrainingWatch(texts, tokenizer, every=5 * EVERY)
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
for step in range(STEPS + 1):
    if values := watch(model, step):
        shown = {name: f"{value:.3g}" for name, value in values.items() if not name.endswith("_standard_error")}
        print(step, shown)
    if step % EVERY == 0:
        model.save_pretrained(f"runs/pocket/checkpoint-{step}")
        tokenizer.save_pretrained(f"runs/pocket/checkpoint-{step}")
    starts = torch.randint(len(ids) - 129, (8,)).tolist()
    batch = torch.stack([ids[start : start + 129] for start in starts])
    loss = model(batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

# %% [markdown]
# The checkpoints: KL along the run, how it grows with the steps between, and whether the run has settled.

# %%
klscale.trajectory(["./runs/pocket"], texts, "klscale-store")
