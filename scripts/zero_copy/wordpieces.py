"""The wordpieces of a packed corpus: a transformer's tokenizer reads each document once, not at
every step of every epoch.

    column           dtype  shape             meaning
    wordpieces       int32  (wordpieces,)     number of each wordpiece, span after span
    span_offsets     int64  (spans + 1,)      where each span starts in `wordpieces`
    doc_spans        int64  (documents + 1,)  where each document's spans start in `span_offsets`
    aligned          int32  (aligned,)        wordpieces of each token, token after token, counted
                                              from the first of the document
    aligned_lengths  int32  (tokens,)         how many of them each token has
    doc_aligned      int64  (documents + 1,)  where each document starts in `aligned`

Spans may overlap or leave tokens out, so a token has any number of wordpieces. The numbers are
those that spacy-transformers would compute, without its padding.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy
import srsly
import torch
from safetensors import SafetensorError
from spacy.language import Language
from spacy.tokens import Doc, Span

from zero_copy.copying import upload
from zero_copy.corpus import PackedBatch, ResidentCorpus
from zero_copy.errors import UserError
from zero_copy.store import PackedCorpus, WordpieceInfo

FACTORIES = ("transformer", "zero_copy_transformer")
SENT_SPANS = "spacy-transformers.sent_spans.v1"
DOC_SPANS = "spacy-transformers.doc_spans.v1"
STRIDED_SPANS = {
    "@span_getters": "spacy-transformers.strided_spans.v1",
    "window": 128,
    "stride": 96,
}
# Documents that are tokenized at a time.
DOCS_AT_ONCE = 500
# A further group of spans costs as much time as so many wordpieces of padding: launching its
# operations, above all on a GPU.
GROUP_COST = {"cpu": 64, "cuda": 4096}


class Layout(NamedTuple):
    """What decides which wordpieces a document has.

    transformer (str): Name or folder of the Hugging Face model.
    tokenizer_config (Dict[str, Any]): Settings of its tokenizer.
    spans (Dict[str, Any]): The config blocks of the span getter, and of the components that
        annotate the documents before it, by their names.
    get_spans (Callable[[List[Doc]], List[List[Span]]]): The span getter.
    """

    transformer: str
    tokenizer_config: dict[str, Any]
    spans: dict[str, Any]
    get_spans: Callable[[list[Doc]], list[list[Span]]]


def layout_of(nlp: Language) -> Layout | None:
    """The layout that the transformer of a pipeline asks for.

    nlp (Language): The pipeline, not initialized perhaps.
    RETURNS (Optional[Layout]): The layout, or None if it has no transformer.
    """
    config = nlp.config.interpolate()
    annotating = config["training"].get("annotating_components", [])
    before: dict[str, Any] = {}
    for name in nlp.component_names:
        block = config["components"][name]
        if is_transformer(block):
            model: Any = nlp.get_pipe(name).model  # type: ignore[attr-defined]
            spans = {"get_spans": block["model"]["get_spans"], **before}
            return Layout(
                block["model"]["name"],
                dict(block["model"]["tokenizer_config"]),
                json.loads(srsly.json_dumps(spans)),
                model.attrs["get_spans"],
            )
        if name in annotating:
            before[name] = block
    return None


def is_transformer(block: dict[str, Any]) -> bool:
    """Whether a component is a transformer of spacy-transformers, or ours.

    block (Dict[str, Any]): Its block of a config.
    RETURNS (bool): True if its model has a span getter.
    """
    return block.get("factory") in FACTORIES and "get_spans" in block.get("model", {})


def load_tokenizer(name: str, settings: dict[str, Any]) -> tuple[Any, float]:
    """The tokenizer of a Hugging Face model, and how many wordpieces the model takes at once.

    name (str): Name or folder of the model.
    settings (Dict[str, Any]): Settings of the tokenizer.
    RETURNS (Tuple[PreTrainedTokenizerBase, float]): The tokenizer, and the largest length.
    RAISES (UserError): If there is no such model.
    """
    from transformers import AutoConfig, AutoTokenizer

    with refuse_no_model(name):
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name, **settings)
    positions = getattr(config, "max_position_embeddings", None) or float("inf")
    return tokenizer, min(tokenizer.model_max_length, positions)


@contextmanager
def refuse_no_model(name: str) -> Iterator[None]:
    """Say in one message that a name or folder is no Hugging Face model.

    name (str): The name or folder that is being loaded.
    RAISES (UserError): If it can't be loaded.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name} is no Hugging Face model that can be loaded: {lines[0]}",
            "Give a folder with config.json, weights and tokenizer, or a name on the hub. "
            "`python -m spacy project run transformer` places the default one in assets/.",
        ) from error


def tokenizer_checksum(tokenizer: Any) -> str:
    """What identifies a tokenizer: it changes when any text may get other wordpieces.

    tokenizer (PreTrainedTokenizerBase): The tokenizer.
    RETURNS (str): An MD5, in hexadecimal.
    """
    content: dict[str, Any] = {
        "type": type(tokenizer).__name__,
        "length": tokenizer.model_max_length,
        "special": tokenizer.special_tokens_map,
    }
    if tokenizer.is_fast:
        content |= json.loads(tokenizer.backend_tokenizer.to_str())
        # How the last texts were padded and cut.
        del content["padding"], content["truncation"]
    else:
        content |= {"vocab": tokenizer.get_vocab(), "settings": tokenizer.init_kwargs}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def add_wordpieces(
    nlp: Language, layout: Layout, report: Callable[[int], None] = lambda documents: None
) -> Callable[[PackedCorpus], tuple[WordpieceInfo, dict[str, torch.Tensor]]]:
    """Add the wordpieces of a transformer to corpora that are being packed.

    nlp (Language): The pipeline that has the transformer.
    layout (Layout): Its layout.
    report (Callable[[int], None]): Called with numbers of documents as they are done.
    RETURNS (Callable[[PackedCorpus], Tuple[WordpieceInfo, Dict[str, torch.Tensor]]]): From a packed
        corpus to its columns of wordpieces, and what is said of them.
    RAISES (UserError): If the transformer has no tokenizer.
    """
    tokenizer, longest = load_tokenizer(layout.transformer, layout.tokenizer_config)
    annotating = nlp.config["training"].get("annotating_components", [])
    annotators = [nlp.get_pipe(name) for name in layout.spans if name in annotating]

    def spans_of(docs: list[Doc]) -> list[list[Span]]:
        for annotator in annotators:
            docs = [annotator(doc) for doc in docs]
        try:
            return layout.get_spans(docs)
        except ValueError as error:
            raise UserError(
                f"The span getter can't read the documents: {str(error).split('. ')[0]}",
                "It may need a component before the transformer, a sentencizer say, that is "
                "named in [training] annotating_components.",
            ) from error

    def add(packed: PackedCorpus) -> tuple[WordpieceInfo, dict[str, torch.Tensor]]:
        maker = _Maker(tokenizer, longest)
        documents = len(packed.lengths)
        for start in range(0, documents, DOCS_AT_ONCE):
            docs = list(packed.docs(nlp.vocab, range(start, min(start + DOCS_AT_ONCE, documents))))
            maker.add(docs, spans_of(docs))
            if layout.spans["get_spans"]["@span_getters"] == DOC_SPANS:
                _refuse_long(maker, packed, layout)
            report(len(docs))
        info = WordpieceInfo(
            transformer=layout.transformer,
            tokenizer=tokenizer_checksum(tokenizer),
            spans=layout.spans,
            pad=tokenizer.pad_token_id or 0,
            has_types="token_type_ids" in tokenizer.model_input_names,
            cut=maker.cut,
        )
        return info, maker.columns()

    return add


def _refuse_long(maker: "_Maker", packed: PackedCorpus, layout: Layout) -> None:
    if maker.cut:
        raise UserError(
            f"{packed.path}: document {maker.longest_doc} has {maker.longest_found:,} wordpieces, "
            f"and {layout.transformer} takes {maker.longest:,.0f}",
            f"{DOC_SPANS} needs documents that fit. Use spacy-transformers.strided_spans.v1 in "
            "[components.transformer.model.get_spans], with window = 128 and stride = 96 say.",
        )


class _Maker:
    """Makes the columns of one group of documents after another."""

    def __init__(self, tokenizer: Any, longest: float) -> None:
        self.tokenizer = tokenizer
        self.longest = longest
        self.cut = 0
        self.longest_found = 0
        self.longest_doc = 0
        self.documents = 0
        self.parts: list[dict[str, numpy.ndarray]] = []

    def add(self, docs: list[Doc], spans: list[list[Span]]) -> None:
        """Add documents and their spans."""
        flat = [span for doc_spans in spans for span in doc_spans if len(span)]
        span_counts = numpy.array([sum(1 for span in each if len(span)) for each in spans], "int64")
        encoded = self._encode([span.text for span in flat])
        lengths = numpy.array([len(ids) for ids in encoded["input_ids"]], "int64")
        doc_of_span = numpy.repeat(numpy.arange(len(docs)), span_counts)
        self._note_cut(lengths, doc_of_span)
        kept = numpy.minimum(lengths, self.longest).astype("int64")
        # Position of each wordpiece in its span, and which are within the length.
        places = _ranges(lengths)
        is_kept = places < numpy.repeat(kept, lengths)
        ends = kept.cumsum()
        numbers = numpy.repeat(ends - kept, lengths) + places
        if "offset_mapping" in encoded:
            tokens, wordpieces = align(docs, flat, doc_of_span, encoded["offset_mapping"])
        else:
            tokens, wordpieces = _align_strings(docs, spans, encoded["input_ids"], self.tokenizer)
        pairs_kept = is_kept[wordpieces]
        tokens, wordpieces = tokens[pairs_kept], numbers[wordpieces[pairs_kept]]
        token_ends = numpy.cumsum([len(doc) for doc in docs])
        doc_of_pair = numpy.searchsorted(token_ends, tokens, side="right")
        doc_starts = numpy.concatenate([[0], ends])[numpy.concatenate([[0], span_counts.cumsum()])]
        ids = numpy.fromiter(chain.from_iterable(encoded["input_ids"]), "int32", lengths.sum())
        self.parts.append(
            {
                "wordpieces": ids[is_kept],
                "span_offsets": kept,
                "doc_spans": span_counts,
                "aligned": (wordpieces - doc_starts[doc_of_pair]).astype("int32"),
                "aligned_lengths": numpy.bincount(tokens, minlength=token_ends[-1]).astype("int32"),
                "doc_aligned": numpy.bincount(doc_of_pair, minlength=len(docs)),
            }
        )
        self.documents += len(docs)

    def _encode(self, texts: list[str]) -> dict[str, Any]:
        if not texts:
            return {"input_ids": [], "offset_mapping": []}
        encoded = self.tokenizer(
            texts,
            add_special_tokens=True,
            return_attention_mask=False,
            return_offsets_mapping=self.tokenizer.is_fast,
            verbose=False,
        )
        if any(any(types) for types in encoded.get("token_type_ids", [])):
            raise UserError(
                f"The tokenizer {type(self.tokenizer).__name__} gives wordpieces a type each",
                "A packed corpus has no place for them; train this transformer with its stock "
                "config.",
            )
        return encoded

    def _note_cut(self, lengths: numpy.ndarray, doc_of_span: numpy.ndarray) -> None:
        longest = int(lengths.max(initial=0))
        if longest > self.longest_found:
            self.longest_found = longest
            self.longest_doc = self.documents + int(doc_of_span[lengths.argmax()])
        self.cut += int(numpy.maximum(lengths - self.longest, 0).sum())

    def columns(self) -> dict[str, torch.Tensor]:
        """The columns of all documents together."""
        columns = {
            name: numpy.concatenate([part[name] for part in self.parts]) for name in self.parts[0]
        }
        for name in ("span_offsets", "doc_spans", "doc_aligned"):  # lengths until now
            columns[name] = numpy.concatenate([[0], columns[name].cumsum()]).astype("int64")
        return {name: torch.from_numpy(column) for name, column in columns.items()}


def align(
    docs: list[Doc], spans: list[Span], doc_of_span: numpy.ndarray, offsets: list[list[Any]]
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Which wordpieces each token has, by the characters that they share.

    As in spacy-transformers the space after a token counts as the token's.

    docs (List[Doc]): The documents.
    spans (List[Span]): Their spans, one document after another.
    doc_of_span (numpy.ndarray): Position of each span's document, int64, `(spans,)`.
    offsets (List[List[Tuple[int, int]]]): For each span and wordpiece where its characters start
        and end in the span's text; special wordpieces have none.
    RETURNS (Tuple[numpy.ndarray, numpy.ndarray]): Pairs of a token's number, among those of all
        documents, and that of a wordpiece, among those of all spans, sorted by token and then by
        wordpiece, int64, `(pairs,)` each.
    """
    characters = numpy.array([len(token.text_with_ws) for doc in docs for token in doc], "int64")
    # Tokens without characters have no wordpieces: pass over them, so that a wordpiece's tokens
    # are a run of neighbours.
    visible = numpy.flatnonzero(characters)
    token_of_character = numpy.repeat(numpy.arange(len(visible)), characters[visible])
    doc_characters = numpy.array([len(doc.text) for doc in docs], "int64")
    doc_starts = doc_characters.cumsum() - doc_characters
    span_starts = doc_starts[doc_of_span]
    span_starts = span_starts + numpy.array([span.start_char for span in spans], "int64")
    flat = numpy.array(
        [bounds for span_offsets in offsets for bounds in span_offsets], "int64"
    ).reshape(-1, 2)
    lengths = numpy.array([len(span_offsets) for span_offsets in offsets], "int64")
    starts, ends = flat.T + numpy.repeat(span_starts, lengths)
    wordpieces = numpy.flatnonzero(ends > starts)
    first = token_of_character[starts[wordpieces]]
    counts = token_of_character[ends[wordpieces] - 1] - first + 1
    tokens = visible[numpy.repeat(first, counts) + _ranges(counts)]
    order = numpy.argsort(tokens, kind="stable")
    return tokens[order], numpy.repeat(wordpieces, counts)[order]


def _align_strings(
    docs: list[Doc], spans: list[list[Span]], ids: list[list[int]], tokenizer: Any
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The same for tokenizers that do not say which characters a wordpiece stands for."""
    from spacy_transformers.align import get_alignment

    strings = iter([tokenizer.convert_ids_to_tokens(each) for each in ids])
    tokens, wordpieces, token_start, wordpiece_start = [], [], 0, 0
    for doc, doc_spans in zip(docs, spans, strict=True):
        doc_spans = [span for span in doc_spans if len(span)]
        doc_strings = [next(strings) for _ in doc_spans]
        if doc_spans:
            aligned: Any = get_alignment(doc_spans, doc_strings, tokenizer.all_special_tokens)
            numbers = numpy.repeat(numpy.arange(len(doc)), aligned.lengths)
            tokens.append(token_start + numbers)
            wordpieces.append(wordpiece_start + aligned.data.reshape(-1).astype("int64"))
        token_start += len(doc)
        wordpiece_start += sum(map(len, doc_strings))
    empty = [numpy.zeros(0, "int64")]
    return numpy.concatenate(tokens or empty), numpy.concatenate(wordpieces or empty)


def _ranges(lengths: numpy.ndarray) -> numpy.ndarray:
    """0, 1, ... up to each length, one after another."""
    return numpy.arange(lengths.sum()) - numpy.repeat(lengths.cumsum() - lengths, lengths)


class ResidentWordpieces:
    """The wordpieces of a resident corpus, placed on the device once.

    corpus (ResidentCorpus): The corpus.
    """

    def __init__(self, corpus: ResidentCorpus) -> None:
        columns = corpus.packed.columns
        assert corpus.info.wordpieces is not None
        self.info = corpus.info.wordpieces
        # On the host stays what the shapes of a batch follow from.
        self.doc_spans = columns["doc_spans"].numpy()
        self.lengths = numpy.diff(columns["span_offsets"].numpy())
        self.doc_aligned = columns["doc_aligned"].numpy()
        self.numbers, self.span_offsets, self.aligned, self.aligned_lengths = (
            columns[name].to(corpus.device)
            for name in ("wordpieces", "span_offsets", "aligned", "aligned_lengths")
        )


class Group(NamedTuple):
    """Spans that go through the model side by side.

    start (int): The first of them, among the spans of a batch in the order of their lengths.
    end (int): Where the next group starts.
    longest (int): Wordpieces of the longest one, to which the others are padded.
    """

    start: int
    end: int
    longest: int

    @property
    def size(self) -> int:
        """Wordpieces, padding included."""
        return (self.end - self.start) * self.longest


class PaddedSpans:
    """The spans of a packed batch, in groups of like length, and where its tokens are in them.

    What the transformer computes has a row for each wordpiece and each padding of group after
    group. On the device everything is gathered; only the numbers of the spans go there.

    batch (PackedBatch): The documents.
    most (int): The largest number of wordpieces in a group, padding included; a longer span makes
        one by itself.
    """

    def __init__(self, batch: PackedBatch, most: int) -> None:
        self.batch = batch
        corpus = batch.corpus
        self.wordpieces = corpus.cached(("wordpieces",), lambda: ResidentWordpieces(corpus))
        first, end = (self.wordpieces.doc_spans[batch.docs + shift] for shift in (0, 1))
        spans = numpy.repeat(first, end - first) + _ranges(end - first)
        lengths = self.wordpieces.lengths[spans]
        order = numpy.argsort(lengths, kind="stable")
        self.groups = list(cut_groups(lengths[order], most, GROUP_COST[corpus.device.type]))
        self.rows = sum(group.size for group in self.groups)
        self.count = int(lengths.sum())
        # Where each span's first wordpiece stands among the rows.
        places = numpy.zeros(len(spans), "int64")
        start = 0
        for group in self.groups:
            size = group.end - group.start
            places[order[group.start : group.end]] = start + numpy.arange(size) * group.longest
            start += group.size
        # In one upload: the spans by length, the spans by document, and their places.
        uploaded = upload(numpy.stack([spans[order], spans, places]), corpus.device)
        self.by_length, self.by_doc, self.places = uploaded

    def inputs(self, group: Group) -> dict[str, torch.Tensor]:
        """What a Hugging Face model takes.

        group (Group): The spans.
        RETURNS (Dict[str, torch.Tensor]): `input_ids`, `attention_mask` and perhaps
            `token_type_ids`, `(spans, longest)` each.
        """
        columns, spans = self.wordpieces, self.by_length[group.start : group.end]
        starts, ends = columns.span_offsets[spans, None], columns.span_offsets[spans + 1, None]
        positions = starts + torch.arange(group.longest, device=starts.device)
        is_there = positions < ends
        numbers = columns.numbers[positions.clamp(max=len(columns.numbers) - 1)]
        ids = torch.where(is_there, numbers, columns.info.pad).long()
        inputs = {"input_ids": ids, "attention_mask": is_there.float()}
        if columns.info.has_types:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        return inputs

    @cached_property
    def segments(self) -> "AlignedWordpieces":
        """The wordpieces of each token."""
        return AlignedWordpieces(self.batch, self.wordpieces)

    @cached_property
    def row_of_aligned(self) -> torch.Tensor:
        """For every wordpiece of every token the row that it has, int64, `(aligned,)`."""
        columns, batch = self.wordpieces, self.batch
        starts = columns.span_offsets[self.by_doc]
        lengths = columns.span_offsets[self.by_doc + 1] - starts
        shift = self.places - (lengths.cumsum(0) - lengths)
        counter = torch.arange(self.count, device=shift.device)
        row_of_wordpiece = counter + shift.repeat_interleave(lengths, output_size=self.count)
        # The documents' first wordpieces, among those of the batch.
        doc_spans = batch.corpus.derived(("doc_spans",), lambda: columns.doc_spans)
        doc_offsets = columns.span_offsets[doc_spans]
        doc_lengths = doc_offsets[batch.numbers + 1] - doc_offsets[batch.numbers]
        doc_starts = doc_lengths.cumsum(0) - doc_lengths
        aligned = columns.aligned[self.segments.items].long()
        return row_of_wordpiece[aligned + doc_starts[self.segments.doc_of_item]]


class AlignedWordpieces:
    """The wordpieces of a batch's tokens, in the form in which layers that pool see the tokens of
    its documents: a token takes the place of a document, and a wordpiece that of a token.

    batch (PackedBatch): The documents.
    columns (ResidentWordpieces): The wordpieces of their corpus.
    """

    def __init__(self, batch: PackedBatch, columns: ResidentWordpieces) -> None:
        self.tokens = batch.words
        self.lengths = columns.aligned_lengths[batch.tokens].long()
        self.ends = self.lengths.cumsum(0)
        self.starts = self.ends - self.lengths
        counts = columns.doc_aligned[batch.docs + 1] - columns.doc_aligned[batch.docs]
        self.words = int(counts.sum())
        device = self.lengths.device
        positions = torch.arange(self.tokens, device=device)
        self.doc_of_token = positions.repeat_interleave(self.lengths, output_size=self.words)
        self.doc_of_item = batch.doc_of_token[self.doc_of_token]
        # Position in the corpus of each.
        offsets = batch.corpus.derived(("doc_aligned",), lambda: columns.doc_aligned)
        lengths = offsets[batch.numbers + 1] - offsets[batch.numbers]
        shift = offsets[batch.numbers] - (lengths.cumsum(0) - lengths)
        self.items = torch.arange(self.words, device=device) + shift[self.doc_of_item]

    def __len__(self) -> int:
        return self.tokens


def cut_groups(lengths: numpy.ndarray, most: int, cost: int) -> Iterator[Group]:
    """Cut spans into groups of like length.

    lengths (numpy.ndarray): Wordpieces of each span, ascending, int64, `(spans,)`.
    most (int): The largest number of wordpieces in a group, padding included; a longer span makes
        one by itself.
    cost (int): How many wordpieces of padding a further group is worth.
    YIELDS (Group): The groups.
    """
    start, longest, padding = 0, 0, 0
    for end, length in enumerate(lengths.tolist()):
        size = end - start
        more = size * (length - longest)
        if size and ((size + 1) * length > most or padding + more > cost):
            yield Group(start, end, longest)
            start, padding, more = end, 0, 0
        padding += more
        longest = length
    if len(lengths):
        yield Group(start, len(lengths), longest)
