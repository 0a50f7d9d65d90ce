"""Commands on text sets: list, info, build, draw, clip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from klscale.cli.options import DrawOptions, JsonOption, StoreOptions, at_work
from klscale.errors import InputError
from klscale.show.columns import Column, lines, records, table
from klscale.show.files import whole
from klscale.show.terminal import describe_texts, out, plain, print_json


def _origin(head: Mapping[str, Any]) -> str:
    if head["external"]:
        return "log-likelihoods only"
    drawn = head["drawn"]
    return "" if drawn is None else f"written by {plain(drawn.get('author'))}, seed {plain(drawn.get('seed'))}"


TEXT_SET = (
    Column("", title="name", cell=lambda it: plain(it["name"]), words=True, importance=2),
    Column("", title="id", cell=lambda it: it["id"], words=True, importance=2),
    Column("", title="texts", cell=lambda it: f"{it['n_texts']:,}"),
    Column("", title="mean bytes", cell=lambda it: f"{it['mean_bytes']:.1f}"),
    Column("", title="clip, nats", cell=lambda it: "" if it["clip"] is None else f"{it['clip']:.1f}"),
    Column("", title=" ", cell=_origin, words=True),
)
"""Of the head of a text set."""


def list_command(*, options: StoreOptions, as_json: JsonOption = False) -> None:
    """The named text sets, and those in the store."""
    from klscale.inputs.texts import NAMED

    heads = options.opened().text_sets()
    if as_json:
        print_json({"named": NAMED, "store": heads})
        return
    if heads:
        out.print(table(TEXT_SET, heads))
    for name, what in NAMED.items():
        out.print(f"{name}: {what}")


def info(
    texts: Annotated[str | None, typer.Argument(metavar="NAME|FILE", help="Default: the store's own set.")] = None,
    *,
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """What a text set holds: size, lengths, domains, documents, clip; how many texts a wanted error needs."""
    import numpy as np

    from klscale.show.scoring import lost_cuts, print_lost_cuts
    from klscale.show.text_sets import NEEDED, print_texts_needed
    from klscale.studies.validity import texts_needed

    place = options.opened()
    with at_work(options) as how:
        found = how.at(texts, None).chosen(place)
    scored, _ = place.vectors(found).of_one_convention()
    lost = lost_cuts(place.entries(found.id))
    needed = texts_needed(scored) if len(scored) > 1 else ()
    low, middle, high = (int(q) for q in np.quantile(found.bytes, [0.0, 0.5, 1.0]))
    domains = {d: sum(x == d for x in found.domain) for d in sorted(set(found.domain))} if found.domain else {}
    documents = len(set(found.document)) if found.document else None
    if as_json:
        print_json(
            {"name": found.name, "id": found.id, "n_texts": len(found), "mean_bytes": found.mean_bytes,
             "min_bytes": low, "median_bytes": middle, "max_bytes": high, "clip": found.clip,
             "external": found.external, "domains": domains, "n_documents": documents,
             "lost_cuts": lost, "texts_needed": records(NEEDED, needed)}
        )  # fmt: skip
        return
    out.print(describe_texts(found))
    out.print(f"bytes: {low:,} to {high:,}, median {middle:,}; {int(found.bytes.sum()):,} in all")
    if documents is not None:
        shared = "; standard errors are clustered by document" if documents < len(found) else ""
        out.print(f"documents: {documents:,}{shared}")
    if found.name.startswith("pocket-python-"):
        out.print("Made from this Python installation: another Python version makes another set, with another id.")
    if domains:
        out.print(table(lines("domain", "texts"), [(plain(name), f"{count:,}") for name, count in domains.items()]))
    print_lost_cuts(lost)
    if needed:
        print_texts_needed(needed)
    else:
        out.print("How many texts a KL needs: klscale compare REF REF --precision 10%  scores as many.", style="dim")


def build(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Documents: text files; tables or data sets with a column 'text'."),
    ],
    file: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Where to write the set.")],
    n_texts: Annotated[
        int | None, typer.Option("--sample", min=2, metavar="N", help="Number of chunks. Default: all.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=4, help="Longest chunk in UTF-8 bytes.")] = 1024,
    min_bytes: Annotated[int, typer.Option(min=0, help="Chunks must be longer than this.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 42,
    as_json: JsonOption = False,
) -> None:
    """Cut documents into chunks, as the published set was, and sample a text set from them."""
    from klscale.inputs.texts import build_texts, read_documents

    if file.suffix != ".jsonl" or file.resolve() in [Path(one).resolve() for one in files]:
        raise InputError(f"--out {file}: not a new .jsonl file.", remedy="A text set is written as JSON lines.")
    built = build_texts(file.stem, read_documents(files), n_texts, max_bytes=max_bytes, min_bytes=min_bytes, seed=seed)
    made = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in built.records())
    whole(file, lambda temporary: temporary.write_text(made, encoding="utf-8"))
    if as_json:
        print_json({"file": str(file), "id": built.id, "n_texts": len(built), "mean_bytes": built.mean_bytes})
        return
    out.print(describe_texts(built))
    out.print(f"Wrote {plain(file)}. Next: klscale score REF... --texts {plain(file)}")


def draw(
    model: Annotated[str, typer.Argument(metavar="REF", help="The model that writes the texts.")],
    texts_of: Annotated[
        str | None,
        typer.Option("--texts-of", metavar="NAME|FILE", help="Begin as texts of this set do, with about 32 bytes."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="NAME|FILE", help="Begin with whole texts of this set.")
    ] = None,
    n_texts: Annotated[int, typer.Option("-n", min=2, metavar="N", help="Number of texts to draw.")] = 500,
    n_bytes: Annotated[int, typer.Option("--bytes", min=1, metavar="N", help="Length of a text in UTF-8 bytes.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the set. Default: from REF and seed.")
    ] = None,
    *,
    options: DrawOptions,
    as_json: JsonOption = False,
) -> None:
    """Draw a text set from a model, at temperature 1 and with nothing cut off. On it `klscale compare` shows KL from
    this model to any other, across tokenizers."""
    from klscale.studies.verbs.draw import draw_texts

    given = texts_of or prompts
    if given is None or (texts_of and prompts):
        raise InputError("Give either --texts-of or --prompts.", remedy=f"klscale texts draw {model} --texts-of pocket")
    with at_work(options) as how:
        found = draw_texts(
            model, given, whole_prompts=texts_of is None, n_texts=n_texts, n_bytes=n_bytes, seed=seed, name=name,
            options=how,
        )  # fmt: skip
    texts = found.texts
    if as_json:
        print_json(
            {"name": texts.name, "id": texts.id, "n_texts": len(texts), "mean_bytes": texts.mean_bytes,
             "drawn": texts.drawn}
        )  # fmt: skip
        return
    out.print(describe_texts(texts))
    out.print(f"{found.n_drawn:,} drawn; left out: {found.changed:,} that are read again as other tokens, "
              f"{found.ended:,} that ended at once.")  # fmt: skip
    where = f"--texts {plain(texts.name)} --store {plain(found.store.location)}"
    out.print(f"Next: klscale compare {plain(model)} REF {where}", soft_wrap=True)


def clip(
    texts: Annotated[str | None, typer.Argument(metavar="NAME|ID", help="Default: the store's own set.")] = None,
    value: Annotated[float | None, typer.Option(metavar="NATS", help="This value instead of the quantile.")] = None,
    quantile: Annotated[float, typer.Option(min=0, max=0.5, help="Quantile of all values, pooled.")] = 0.02,
    *,
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Freeze a lower limit for log-likelihoods, by default the pooled 2 % quantile of what the store holds now."""
    from klscale.studies.tails import pooled_clip

    place = options.opened()
    if texts is None and place.is_empty:
        raise InputError(f"{place.location} is empty.", "A clip comes from scored models.", "klscale score REF...")
    found = options.at(texts, None).chosen(place)
    if value is None:
        vectors = place.vectors(found)
        if not len(vectors):
            raise InputError(
                f"{place.location} holds no model on {found.name}.",
                "A clip comes from scored models.",
                "Give --value NATS, or score some first.",
            )
        value = pooled_clip(vectors, quantile)
    if not value < 0:
        raise InputError(f"A clip of {value} nats would move every value.", remedy="Log-likelihoods are negative.")
    place.put_texts(found.with_clip(value))
    if as_json:
        print_json({"texts": found.name, "text_set": found.id, "clip": value})
        return
    out.print(f"{plain(found.name)} is now clipped at {value:.4f} nats; KL values before and after are not comparable.")
