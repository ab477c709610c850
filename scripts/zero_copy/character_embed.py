"""The lowering of spaCy's embedding of the first and last characters of each token."""

from spacy.tokens import Doc
from spacy.vocab import Vocab
from thinc.api import Model

from zero_copy import kernels
from zero_copy.lowering import Rows, Run, lowers
from zero_copy.parameters import Array


@lowers("spacy.ml._character_embed.forward")
def character_embed(model: Model, X: None, run: Run) -> Rows:
    batch, corpus = run.batch, run.batch.corpus.whole
    places = model.get_dim("nC")

    def make() -> Array:
        packed = corpus.packed
        texts = packed.texts(range(len(packed.columns["type_attrs"])))
        return Doc(Vocab(), words=texts).to_utf8_array(nr_char=places)

    characters = corpus.derived(("characters", places), make)
    # The gradient of a token depends on the tokens after it, but without one types will do.
    chosen = batch.token_types if run.is_train else run.types
    vectors = kernels.CharacterRows.apply(
        *(run.parameter(model, "E"), characters[chosen], batch.doc_of_token, len(batch)),
        run.gradient(model, "E"),
    )
    return Rows(vectors, run.per_type and not run.is_train)
