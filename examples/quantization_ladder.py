# %% [markdown]
# # A quantization ladder
#
# What does a kind of quantization cost, which is nearer to the base, and is the difference more than noise? The base
# here is the last checkpoint of `training_run.py`; any model does, such as `BASE = "HuggingFaceTB/SmolLM2-135M"`.
# It needs `pip install 'klscale[quant]'`.

# %%
import klscale

BASE = "./runs/pocket/checkpoint-110"
KINDS = ["int8", "nf4", "fp4"]
texts = klscale.load_texts("pocket")
texts = klscale.TextSet.from_texts("pocket-60", texts.texts[:60], document=texts.document[:60])
options = klscale.Options(texts=texts, store="klscale-store")

# %% [markdown]
# KL of each variant from the base, by sampled tokens, with a paired standard error of each step of the ladder.

# %%
klscale.compare([BASE, *(f"{BASE}+{kind}" for kind in KINDS)], reference=BASE, options=options)

# %% [markdown]
# Which blocks suffer most, each quantized alone.

# %%
klscale.sensitivity(BASE, "nf4", by="block", n_texts=20, options=options)
