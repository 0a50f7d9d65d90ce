# %% [markdown]
# # A map of models
#
# Log-likelihoods of 14 models trained on the Pile come as a CSV file. Nothing is downloaded, and no model is run.
# With your own models, `klscale.score(["org/a", "./runs/b/checkpoint-500"], "my-texts.jsonl")` fills the store.
#
# A notebook in percent format: open it in VS Code, or in Jupyter with jupytext; or run it with Python.

# %%
from pathlib import Path

import klscale

HERE = Path(__file__).parent if "__file__" in globals() else Path()
store = klscale.Store("klscale-store")
store.import_vectors(
    klscale.read_log_likelihoods(HERE / "pile-trained-14.csv", id_column="text_id"), "pile-trained-14.csv"
)
options = klscale.Options(store=store)

# %% [markdown]
# Two of them. Which is better, and is their KL a lot?

# %%
klscale.compare(["EleutherAI/pythia-1b", "EleutherAI/pythia-410m"], options=options)

# %% [markdown]
# All of them: principal components, t-SNE, and the nearest of each.

# %%
klscale.map(options=options)

# %% [markdown]
# How large KL is between models of one type, and of other sizes and architectures.

# %%
klscale.scale(options=options)

# %% [markdown]
# Where one model stands among the others.

# %%
klscale.place("state-spaces/mamba-1.4b-hf", options=options)
