"""Prints docs/gguf-audit.md: what becomes of a GGUF file's metadata, for each architecture that transformers reads.

python docs/make_gguf_audit.py > docs/gguf-audit.md
"""

from __future__ import annotations

from klscale.sources.transformers.gguf_files import HARMLESS, SHAPES, VALUES

KINDS = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "deci": "llama", "qwen35": "qwen3_5_text",
         "qwen35moe": "qwen3_5_moe_text"}  # fmt: skip
"""Kinds of configuration where transformers names them otherwise than the architecture."""


def audit() -> str:
    """The page, from the tables of the installed transformers and of `gguf_files.py`."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    rows = []
    for architecture in sorted({*GGUF_CONFIG_MAPPING, *GGUF_CONFIG_ARCHS} - {"general", "tokenizer"}):
        kind = CONFIG_MAPPING[KINDS.get(architecture, architecture)]
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(kind(), "is_encoder_decoder", False):
            rows.append(f"| `{architecture}` | no decoder of `AutoModelForCausalLM`: the file is refused | | |")
            continue
        settings = kind().get_text_config()
        known = settings.to_dict()
        mapped = GGUF_CONFIG_MAPPING.get(architecture, {})
        read = {key for key, name in mapped.items() if name is not None}
        has = {key for key, names in VALUES.items() if any(name in known or hasattr(settings, name) for name in names)}
        rope = "applied" if getattr(settings, "rope_parameters", None) else "refused"
        columns = (
            ", ".join(f"`{key}`" for key in sorted(keys)) or "none" for keys in (has - read, VALUES.keys() - has)
        )
        rows.append(f"| `{architecture}` | {' | '.join(columns)} | {rope} |")
    return "\n".join([
        "# GGUF: what becomes of each key",
        "",
        "Made by `python docs/make_gguf_audit.py` for the architectures that the installed transformers reads;",
        "a test holds it.",
        "Keys are without the architecture's name. For every architecture:",
        "",
        f"- taken from the shapes of tensors: {', '.join(f'`{key}`' for key in SHAPES)};",
        f"- without effect on a text within the window: {', '.join(f'`{key}`' for key in HARMLESS)}"
        " (`attention.causal` = false is refused);",
        "- any key that is in no column: refused, and named;",
        "- a tensor that no parameter takes: refused, since all weights of a file are counted. Applied beside the"
        " parameters: `rope_freqs.weight`, attention biases.",
        "",
        "| architecture | not in transformers' tables: compared, and applied where it differs | refused, unless the"
        " value changes nothing | `rope.*` |",
        "|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    print(audit(), end="")
