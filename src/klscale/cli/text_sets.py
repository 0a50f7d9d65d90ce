"""Commands on text sets: list, info, build, draw, clip."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from klscale.cli.options import DrawOptions, JsonOption, StoreOptions, at_work
from klscale.cli.results import show
from klscale.errors import InputError
from klscale.show.columns import record
from klscale.show.files import whole
from klscale.show.terminal import describe_texts, out, plain


def list_command(*, options: StoreOptions, as_json: JsonOption = False) -> None:
    """The named text sets, and those in the store."""
    from klscale.show.texts import TEXT_SETS, print_text_sets

    heads = options.opened().text_sets()
    show(as_json, lambda: record(TEXT_SETS, heads), lambda: print_text_sets(heads))


def info(
    texts: Annotated[str | None, typer.Argument(metavar="NAME|FILE", help="Default: the store's own set.")] = None,
    *,
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """What a text set holds: size, lengths, domains, documents, clip; how many texts a wanted error needs."""
    from klscale.show.scoring import lost_cuts
    from klscale.show.texts import KNOWN_TEXTS, KnownTexts, print_known_texts
    from klscale.studies.validity import texts_needed

    place = options.opened()
    with at_work(options) as how:
        found = how.at(texts, None).chosen(place)
    scored, _ = place.vectors(found).of_one_convention()
    needed = texts_needed(scored) if len(scored) > 1 else ()
    known = KnownTexts(found, lost_cuts(place.entries(found.id)), needed)
    show(as_json, lambda: record(KNOWN_TEXTS, known), lambda: print_known_texts(known))


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
    from klscale.show.texts import BUILT

    if file.suffix != ".jsonl" or file.resolve() in [Path(one).resolve() for one in files]:
        raise InputError(f"--out {file}: not a new .jsonl file.", remedy="A text set is written as JSON lines.")
    built = build_texts(file.stem, read_documents(files), n_texts, max_bytes=max_bytes, min_bytes=min_bytes, seed=seed)
    made = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in built.records())
    whole(file, lambda temporary: temporary.write_text(made, encoding="utf-8"))

    def tables() -> None:
        out.print(describe_texts(built))
        out.print(f"Wrote {plain(file)}. Next: klscale score REF... --texts {plain(file)}")

    show(as_json, lambda: record(BUILT, SimpleNamespace(file=file, texts=built)), tables)


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
    from klscale.show.texts import DRAWN, print_drawn
    from klscale.studies.verbs.draw import draw_texts

    given = texts_of or prompts
    if given is None or (texts_of and prompts):
        raise InputError("Give either --texts-of or --prompts.", remedy=f"klscale texts draw {model} --texts-of pocket")
    with at_work(options) as how:
        found = draw_texts(
            model, given, whole_prompts=texts_of is None, n_texts=n_texts, n_bytes=n_bytes, seed=seed, name=name,
            options=how,
        )  # fmt: skip
    show(as_json, lambda: record(DRAWN, found), lambda: print_drawn(found))


def clip(
    texts: Annotated[str | None, typer.Argument(metavar="NAME|ID", help="Default: the store's own set.")] = None,
    value: Annotated[float | None, typer.Option(metavar="NATS", help="This value instead of the quantile.")] = None,
    quantile: Annotated[float, typer.Option(min=0, max=0.5, help="Quantile of all values, pooled.")] = 0.02,
    *,
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Freeze a lower limit for log-likelihoods, by default the pooled 2 % quantile of what the store holds now."""
    from klscale.show.texts import CLIPPED
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
    clipped = found.with_clip(value)
    place.put_texts(clipped)
    show(
        as_json,
        lambda: record(CLIPPED, SimpleNamespace(texts=clipped)),
        lambda: out.print(
            f"{plain(found.name)} is now clipped at {value:.4f} nats; KL values before and after are not comparable."
        ),
    )
