"""The packed corpus: a whole split as flat integer columns in one `.safetensors` file.

A text's tokens repeat those of others, so each distinct row of token attributes (a type) is stored
once and a token is the number of its type: 4 bytes, whatever attributes a model embeds.

    column          dtype   shape                meaning
    type_attrs      uint64  (types, attributes)  the attributes of each distinct token
    type_texts      uint8   (bytes,)             the types' texts, one after another, UTF-8
    text_offsets    int64   (types + 1,)         where each type's text starts in `type_texts`
    token_types     int32   (tokens,)            the type of each token, document after document
    doc_offsets     int64   (documents + 1,)     where each document starts in `token_types`
    cats            uint8   (documents, labels)  0 no, 1 yes, 255 not annotated

Those of a transformer's wordpieces, where it was packed with them, are in `wordpieces.py`.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy
import pydantic
import spacy
import srsly
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from spacy.tokens import Doc, DocBin
from spacy.training.corpus import FILE_TYPE, walk_corpus
from spacy.vocab import Vocab

from zero_copy.errors import UserError
from zero_copy.files import replacing

FORMAT = "zero_copy.packed"
FORMAT_VERSION = 1
# What spaCy's own tok2vec and bag-of-words layers look at, and SPACY so that the text comes back.
ATTRS = ("ORTH", "NORM", "LOWER", "PREFIX", "SUFFIX", "SHAPE", "SPACY")
# These differ between tokens of one text (NORM through the tokenizer's exceptions); every other
# attribute that can be packed follows from the text of the token alone.
TOKEN_ATTRS = ("ORTH", "NORM", "SPACY")
LEXICAL_ATTRS = (
    *("ORTH", "NORM", "LOWER", "PREFIX", "SUFFIX", "SHAPE", "SPACY", "LENGTH", "IS_ALPHA"),
    *("IS_ASCII", "IS_DIGIT", "IS_LOWER", "IS_UPPER", "IS_TITLE", "IS_PUNCT", "IS_SPACE"),
    *("IS_BRACKET", "IS_QUOTE", "IS_LEFT_PUNCT", "IS_RIGHT_PUNCT", "IS_CURRENCY", "IS_STOP"),
    *("LIKE_URL", "LIKE_NUM", "LIKE_EMAIL"),
)
MISSING = 255
# Odd numbers with no pattern in their bits (those of xxHash).
MIXERS = numpy.array([0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F], "uint64")
COLUMNS = ("type_attrs", "type_texts", "text_offsets", "token_types", "doc_offsets", "cats")
WORDPIECE_COLUMNS = (
    *("wordpieces", "span_offsets", "doc_spans"),
    *("aligned", "aligned_lengths", "doc_aligned"),
)


class Source(pydantic.BaseModel):
    """The `.spacy` file or folder that a packed corpus was made from.

    name (str): Its name, in the folder of the packed corpus.
    size (int): Bytes, of all its files together.
    md5 (str): Checksum of all its files, one after another in the order of their names.
    """

    name: str
    size: int
    md5: str


class WordpieceInfo(pydantic.BaseModel):
    """The wordpieces that a packed corpus holds.

    transformer (str): Name or folder of the Hugging Face model whose tokenizer made them.
    tokenizer (str): Checksum of the tokenizer.
    spans (Dict[str, Any]): Config blocks of the span getter, and of the components that annotated
        the documents before it.
    pad (int): Number of the wordpiece that fills up a span.
    has_types (bool): Whether the model is to be given types of wordpieces, all zeros.
    cut (int): How many wordpieces were left out, at the ends of spans longer than the model takes.
    """

    transformer: str
    tokenizer: str
    spans: dict[str, Any]
    pad: int
    has_types: bool
    cut: int


class PackedInfo(pydantic.BaseModel):
    """What the header of a packed corpus says of it.

    format (str): Always `zero_copy.packed`.
    version (int): The version of the format.
    spacy_version (str): The spaCy that tokenized and computed the attributes.
    lang (str): Language code of the tokenizer.
    attrs (List[str]): Names of the columns of `type_attrs`.
    labels (List[str]): Names of the columns of `cats`, in the order in which they were first seen.
    source (Source): What the corpus was made from.
    wordpieces (Optional[WordpieceInfo]): What it holds for a transformer, if anything.
    """

    format: str = FORMAT
    version: int = FORMAT_VERSION
    spacy_version: str = spacy.__version__
    lang: str
    attrs: list[str]
    labels: list[str]
    source: Source
    wordpieces: WordpieceInfo | None = None


class PackedCorpus:
    """A packed corpus on disk, its columns memory-mapped: nothing is read before it is used.

    path (Path): The `.safetensors` file.
    info (PackedInfo): Its header.
    columns (Dict[str, torch.Tensor]): The columns, as in the table at the top of this module.
    """

    def __init__(self, path: Path, info: PackedInfo, columns: dict[str, torch.Tensor]) -> None:
        self.path = path
        self.info = info
        self.columns = columns

    @property
    def lengths(self) -> numpy.ndarray:
        """Words of every document, int64, `(documents,)`."""
        return numpy.diff(self.columns["doc_offsets"].numpy())

    def attribute(self, name: str) -> numpy.ndarray:
        """One attribute of every type.

        name (str): Name of the attribute, `NORM` say.
        RETURNS (numpy.ndarray): uint64, `(types,)`.
        RAISES (UserError): If the corpus was packed without this attribute.
        """
        if name not in self.info.attrs:
            raise UserError(
                f"{self.path} holds no attribute {name}, which the model embeds",
                f"It holds {', '.join(self.info.attrs)}. Pack again with --attr {name}.",
            )
        return self.columns["type_attrs"].numpy()[:, self.info.attrs.index(name)].copy()

    def texts(self, types: numpy.ndarray | range) -> list[str]:
        """The texts of some types.

        types (numpy.ndarray or range): Numbers of the types.
        RETURNS (List[str]): Their texts.
        """
        offsets = self.columns["text_offsets"].numpy()
        texts = self.columns["type_texts"].numpy()
        return [texts[offsets[t] : offsets[t + 1]].tobytes().decode("utf8") for t in types]

    def docs(self, vocab: Vocab, numbers: range) -> Iterator[Doc]:
        """The documents as ordinary Docs: text, tokens, spaces and categories come back.

        vocab (Vocab): The vocab to create them in.
        numbers (range): Which documents.
        YIELDS (Doc): The documents, in order.
        """
        offsets, token_types, cats = (
            self.columns[name].numpy() for name in ("doc_offsets", "token_types", "cats")
        )
        spaces = self.columns["type_attrs"][:, self.info.attrs.index("SPACY")].numpy()
        for number in numbers:
            types = token_types[offsets[number] : offsets[number + 1]]
            doc = Doc(vocab, words=self.texts(types), spaces=spaces[types].astype(bool))
            doc.cats = {
                label: float(value)
                for label, value in zip(self.info.labels, cats[number], strict=True)
                if value != MISSING
            }
            yield doc


def source_of(path: Path) -> Source:
    """Name, size and checksum of a `.spacy` file or folder.

    path (Path): The file or folder.
    RETURNS (Source): What identifies it.
    """
    files = [Path(file) for file in walk_corpus(path, FILE_TYPE)]
    digest = hashlib.md5()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    size = sum(file.stat().st_size for file in files)
    return Source(name=path.name, size=size, md5=digest.hexdigest())


Extension = Callable[[PackedCorpus], tuple[WordpieceInfo, dict[str, torch.Tensor]]]


def pack(
    source: Path,
    target: Path,
    *,
    lang: str = "en",
    attrs: tuple[str, ...] = ATTRS,
    wordpieces: Extension | None = None,
    report: Callable[[int], None] = lambda documents: None,
) -> PackedInfo:
    """Pack a `.spacy` file, or a folder of them, into one `.safetensors` file.

    Documents without tokens are left out, as `spacy.Corpus.v1` does.

    source (Path): A DocBin file or a folder of them.
    target (Path): Where the packed corpus goes; what is there is replaced once all is well.
    lang (str): Language code, for the attributes that follow from a token's text.
    attrs (Tuple[str, ...]): The token attributes to store.
    wordpieces (Optional[Callable]): Adds a transformer's wordpieces, as `add_wordpieces` does.
    report (Callable[[int], None]): Called after every file with its number of documents.
    RETURNS (PackedInfo): The header that was written.
    RAISES (UserError): If the source is missing, broken or empty, lacks NORM, or has a category
        that is neither 0 nor 1; if an attribute can't be packed.
    """
    attrs = check_attrs(attrs)
    if not source.exists():
        raise UserError(f"Nothing to pack at {source}", "Run `convert` first.")
    files = [Path(file) for file in walk_corpus(source, FILE_TYPE)]
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, where there must be room for as much again anyway.
    with TemporaryFile(dir=target.parent) as tokens:
        vocab = spacy.blank(lang).vocab
        compute_only(vocab, [getattr(spacy.attrs, name) for name in attrs])
        packer = _Packer(vocab, attrs, tokens)
        for file in files:
            report(packer.add(file))
        columns = packer.columns(source)
        info = PackedInfo(
            lang=lang, attrs=list(attrs), labels=packer.labels, source=source_of(source)
        )
        if wordpieces is not None:
            info.wordpieces, more = wordpieces(PackedCorpus(target, info, columns))
            columns |= more
        write(target, info, columns)
    return info


def compute_only(vocab: Vocab, attrs: Collection[int]) -> None:
    """Compute of a new word nothing but some attributes: all 23 take twice as long as five.

    vocab (Vocab): A vocab that is used for nothing else.
    attrs (Collection[int]): Their numbers.
    """
    getters = vocab.lex_attr_getters  # type: ignore[attr-defined]
    for attribute in [*getters]:
        if attribute not in attrs:
            del getters[attribute]


def check_attrs(attrs: tuple[str, ...]) -> tuple[str, ...]:
    """The attributes to pack, in upper case and with those that the text needs.

    attrs (Tuple[str, ...]): Names of attributes.
    RETURNS (Tuple[str, ...]): The names, `TOKEN_ATTRS` among them.
    RAISES (UserError): If an attribute does not follow from a token's text.
    """
    names = tuple(dict.fromkeys(name.upper() for name in attrs))
    for name in names:
        if name not in LEXICAL_ATTRS:
            raise UserError(
                f"Attribute {name} can't be packed",
                f"Only what the tokenizer knows of a token can: {', '.join(LEXICAL_ATTRS)}.",
            )
    return names + tuple(name for name in TOKEN_ATTRS if name not in names)


class _Packer:
    """Collects the columns of one DocBin file after another.

    The column of tokens goes to a file as it comes. All else takes 8 bytes a document and one a
    label, and what the vocabulary takes.
    """

    def __init__(self, vocab: Vocab, attrs: tuple[str, ...], tokens: IO[bytes]) -> None:
        self.vocab = vocab
        self.attrs = attrs
        self.tokens = tokens
        self.labels: list[str] = []
        self.type_numbers: dict[tuple[int, int, int], int] = {}
        self.lengths: list[numpy.ndarray] = []
        self.cats: list[numpy.ndarray] = []

    def add(self, file: Path) -> int:
        """Add a DocBin file; returns how many documents it held."""
        docs = read_docbin(file)
        for string in docs.strings:
            self.vocab.strings.add(string)
        kept = [number for number, tokens in enumerate(docs.tokens) if len(tokens)]
        if not kept:
            return 0
        tokens = numpy.concatenate([docs.tokens[number] for number in kept])
        spaces = numpy.concatenate([docs.spaces[number] for number in kept])[:, 0]
        columns = {name: docs.attrs.index(getattr(spacy.attrs, name)) for name in ("ORTH", "NORM")}
        types = self._types(tokens[:, columns["ORTH"]], tokens[:, columns["NORM"]], spaces)
        self.tokens.write(types.data)
        self.lengths.append(numpy.array([len(docs.tokens[number]) for number in kept], "int64"))
        self.cats.append(self._cats(file, [docs.cats[number] for number in kept]))
        return len(kept)

    def _types(
        self, orth: numpy.ndarray, norm: numpy.ndarray, space: numpy.ndarray
    ) -> numpy.ndarray:
        rows, tokens = find_types(orth, norm, space)
        numbers = [
            self.type_numbers.setdefault(row, len(self.type_numbers))
            for row in zip(*(column.tolist() for column in rows), strict=True)
        ]
        return numpy.array(numbers, "int32")[tokens]

    def _cats(self, file: Path, all_cats: list[dict[str, float]]) -> numpy.ndarray:
        positions = {label: number for number, label in enumerate(self.labels)}
        for cats in all_cats:
            for label in cats:
                positions.setdefault(label, len(positions))
        self.labels = list(positions)
        matrix = numpy.full((len(all_cats), len(positions)), MISSING, "uint8")
        for number, cats in enumerate(all_cats):
            for label, value in cats.items():
                if value not in (0.0, 1.0):
                    raise UserError(
                        f"{file}: document {number} has {label} = {value} in doc.cats",
                        "A category is 0.0 or 1.0.",
                    )
                matrix[number, positions[label]] = value
        return matrix

    def columns(self, source: Path) -> dict[str, torch.Tensor]:
        """The columns of all files together."""
        if not self.lengths:
            raise UserError(f"{source} holds no document with a token", "Check what was converted.")
        rows = numpy.array(list(self.type_numbers), "uint64").reshape(-1, len(TOKEN_ATTRS))
        lengths = numpy.concatenate(self.lengths)
        cats = numpy.full((len(lengths), len(self.labels)), MISSING, "uint8")
        row = 0
        for part in self.cats:
            cats[row : row + len(part), : part.shape[1]] = part
            row += len(part)
        columns = {
            **describe_types(self.vocab, self.attrs, rows),
            "token_types": self._token_types(),
            "doc_offsets": offsets_of(lengths),
            "cats": cats,
        }
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    def _token_types(self) -> numpy.ndarray:
        self.tokens.flush()
        return numpy.memmap(self.tokens, "int32", mode="r+")


def find_types(
    orth: numpy.ndarray, norm: numpy.ndarray, space: numpy.ndarray
) -> tuple[tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray], numpy.ndarray]:
    """The distinct tokens among some.

    orth (numpy.ndarray): ORTH of each token, uint64, `(tokens,)`.
    norm (numpy.ndarray): NORM of each token, uint64, `(tokens,)`.
    space (numpy.ndarray): SPACY of each token, 0 or 1, `(tokens,)`.
    RETURNS (Tuple[Tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray], numpy.ndarray]): ORTH, NORM
        and SPACY of each type, `(types,)`, and the type of each token, int64, `(tokens,)`.
    """
    # Tokens are sorted by one number that stands for their three, and only what differs in it, a
    # few of them, by the three. Two rows have the same number as seldom as two strings one hash.
    mixed = orth * MIXERS[0] + norm * MIXERS[1] + space.astype("uint64")
    distinct, candidates = _distinct(mixed)
    first = numpy.empty(len(distinct), "int64")
    first[candidates] = numpy.arange(len(candidates))
    columns = (orth, norm, space)
    if not all((column[first][candidates] == column).all() for column in columns):
        first = candidates = numpy.arange(len(orth))
    rows, types = _sorted_types(*(column[first] for column in columns))
    return rows, types[candidates]


def _sorted_types(
    orth: numpy.ndarray, norm: numpy.ndarray, space: numpy.ndarray
) -> tuple[tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray], numpy.ndarray]:
    # By sorting three columns of integers: sorting rows is ten times slower.
    orths, orth_codes = _distinct(orth)
    norms, norm_codes = _distinct(norm)
    codes = (orth_codes * len(norms) + norm_codes) * 2 + space.astype("int64")
    distinct, types = _distinct(codes)
    pairs = distinct // 2
    rows = orths[pairs // max(len(norms), 1)], norms[pairs % max(len(norms), 1)], distinct % 2
    return rows, types


def _distinct(values: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The distinct values, ascending, and the place of each value among them."""
    distinct = numpy.unique(values)
    # NumPy's own way to the places sorts pointers to all values, which takes five times as long.
    return distinct, numpy.searchsorted(distinct, values)


def describe_types(
    vocab: Vocab, attrs: tuple[str, ...], rows: numpy.ndarray
) -> dict[str, numpy.ndarray]:
    """The columns of a packed corpus that say what its types are.

    vocab (Vocab): It has the types' strings, and computes their attributes.
    attrs (Tuple[str, ...]): The attributes to store, TOKEN_ATTRS among them.
    rows (numpy.ndarray): TOKEN_ATTRS of each type, uint64, `(types, 3)`.
    RETURNS (Dict[str, numpy.ndarray]): `type_attrs`, `type_texts` and `text_offsets`.
    """
    words = [vocab.strings[orth] for orth in rows[:, 0].tolist()]
    # One long Doc of all types gives every lexical attribute at once.
    values = Doc(vocab, words=words).to_array(list(attrs)).reshape(len(words), -1)
    values = values.astype("uint64")
    for number, name in enumerate(TOKEN_ATTRS):
        values[:, attrs.index(name)] = rows[:, number]
    texts = [word.encode("utf8") for word in words]
    return {
        "type_attrs": values,
        "type_texts": numpy.frombuffer(b"".join(texts), "uint8").copy(),
        "text_offsets": offsets_of(numpy.array([len(text) for text in texts], "int64")),
    }


def offsets_of(lengths: numpy.ndarray) -> numpy.ndarray:
    """Where each of some pieces starts that stand one after another, and where the last ends.

    lengths (numpy.ndarray): Their lengths, `(pieces,)`.
    RETURNS (numpy.ndarray): int64, `(pieces + 1,)`.
    """
    return numpy.concatenate([[0], numpy.cumsum(lengths)]).astype("int64")


def read_docbin(file: Path) -> DocBin:
    """Read a DocBin file.

    file (Path): The file.
    RETURNS (DocBin): Its contents.
    RAISES (UserError): If it is broken, or lacks NORM.
    """
    try:
        docs = DocBin().from_disk(file)
    except OSError:
        raise
    except Exception as error:  # zlib's, msgpack's and NumPy's, whichever meets the damage first
        raise UserError(f"{file} is not a .spacy file, or is cut off", "Run `convert`.") from error
    if spacy.attrs.NORM not in docs.attrs:
        raise UserError(
            f"{file} was written without the attribute NORM",
            'Write it with DocBin(attrs=["ORTH", "NORM"]), or run `convert` on the texts.',
        )
    return docs


def write(path: Path, info: PackedInfo, columns: dict[str, torch.Tensor]) -> None:
    """Write a packed corpus under a temporary name, and rename it when it is complete.

    path (Path): The `.safetensors` file.
    info (PackedInfo): Its header.
    columns (Dict[str, torch.Tensor]): Its columns.
    RAISES (OSError): If the disk is full or not writable; what stood at `path` is still there.
    """
    with replacing(path) as temporary:
        try:
            save_file(columns, temporary, metadata={"info": info.model_dump_json()})
        except SafetensorError as error:  # how the library reports an I/O error
            raise OSError(None, f"{path} can't be written: {error}") from error


def read(path: Path) -> PackedCorpus:
    """Memory-map a packed corpus.

    path (Path): The `.safetensors` file.
    RETURNS (PackedCorpus): The corpus; its columns are read when they are first used.
    RAISES (UserError): If the file is missing, cut off, not a packed corpus, or was made by another
        version of the format or of spaCy, or from another source than stands beside it.
    """
    again = "Run `pack` to make it from the .spacy file."
    if not path.is_file():
        raise UserError(f"There is no packed corpus at {path}", again)
    try:
        with safe_open(path, framework="pt") as opened:
            header = (opened.metadata() or {}).get("info")
            columns = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is cut off, or no .safetensors file ({error})", again) from error
    try:
        info = PackedInfo.model_validate(srsly.json_loads(header or "{}"))
    except (ValueError, pydantic.ValidationError):
        info = None
    if info is None or info.format != FORMAT or set(columns) != set(_columns_of(info)):
        raise UserError(f"{path} is a .safetensors file, but no packed corpus", again)
    if info.version != FORMAT_VERSION:
        raise UserError(
            f"{path} has version {info.version} of the format, and {FORMAT_VERSION} is read", again
        )
    if _minor(info.spacy_version) != _minor(spacy.__version__):
        raise UserError(
            f"{path} was made with spaCy {info.spacy_version}, and this is {spacy.__version__}",
            "Attributes of tokens may differ between the two. " + again,
        )
    source = path.with_name(info.source.name)
    # Only the size is compared here: reading the source would take longer than all the rest.
    if source.is_file() and source.stat().st_size != info.source.size:
        raise UserError(f"{path} was made from another {source.name} than stands beside it", again)
    corpus = PackedCorpus(path, info, columns)
    if not _wordpieces_fit(columns) or columns["doc_offsets"][-1] != len(columns["token_types"]):
        raise UserError(f"{path} has columns that don't fit together", again)
    return corpus


def _columns_of(info: PackedInfo) -> tuple[str, ...]:
    return COLUMNS if info.wordpieces is None else (*COLUMNS, *WORDPIECE_COLUMNS)


def _wordpieces_fit(columns: dict[str, torch.Tensor]) -> bool:
    if "wordpieces" not in columns:
        return True
    documents, tokens = len(columns["doc_offsets"]) - 1, len(columns["token_types"])
    return bool(
        len(columns["doc_spans"]) == len(columns["doc_aligned"]) == documents + 1
        and columns["doc_spans"][-1] == len(columns["span_offsets"]) - 1
        and columns["span_offsets"][-1] == len(columns["wordpieces"])
        and columns["doc_aligned"][-1] == len(columns["aligned"])
        and len(columns["aligned_lengths"]) == tokens
    )


def verify(path: Path) -> PackedInfo:
    """Check a packed corpus in full: what `read` checks, every number, and the source's checksum.

    path (Path): The `.safetensors` file.
    RETURNS (PackedInfo): Its header.
    RAISES (UserError): If anything does not fit.
    """
    corpus = read(path)
    columns = {name: column.numpy() for name, column in corpus.columns.items()}
    types, attrs = columns["type_attrs"].shape
    documents, labels = columns["cats"].shape
    fits = (
        attrs == len(corpus.info.attrs)
        and labels == len(corpus.info.labels)
        and len(columns["text_offsets"]) == types + 1
        and len(columns["doc_offsets"]) == documents + 1
        and columns["text_offsets"][-1] == len(columns["type_texts"])
        and (numpy.diff(columns["doc_offsets"]) >= 0).all()
        and (numpy.diff(columns["text_offsets"]) >= 0).all()
        and columns["token_types"].min(initial=0) >= 0
        and columns["token_types"].max(initial=0) < types
        and numpy.isin(columns["cats"], (0, 1, MISSING)).all()
        and _alignment_fits(columns)
    )
    if not fits:
        raise UserError(f"{path} has columns that don't fit together", "Run `pack` again.")
    source = path.with_name(corpus.info.source.name)
    if source.exists() and source_of(source).md5 != corpus.info.source.md5:
        raise UserError(
            f"{path} was made from another {source.name} than stands beside it", "Run `pack` again."
        )
    return corpus.info


def _alignment_fits(columns: dict[str, numpy.ndarray]) -> bool:
    if "wordpieces" not in columns:
        return True
    bounds = [columns[name] for name in ("span_offsets", "doc_spans", "doc_aligned")]
    if any((numpy.diff(offsets) < 0).any() for offsets in bounds):
        return False
    doc_wordpieces = numpy.diff(columns["span_offsets"][columns["doc_spans"]])
    most = numpy.repeat(doc_wordpieces, numpy.diff(columns["doc_aligned"]))
    return bool(
        columns["aligned_lengths"].sum() == len(columns["aligned"])
        and (columns["aligned_lengths"] >= 0).all()
        and (columns["aligned"] >= 0).all()
        and (columns["aligned"] < most).all()
    )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
