"""spacy-transformers' Transformer, able to train from packed examples."""

from collections.abc import Callable, Iterable
from functools import cached_property
from hashlib import md5
from itertools import pairwise, product
from typing import Any, Literal

import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from spacy_transformers.pipeline_component import Transformer
from thinc.api import Model, Optimizer
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from zero_copy.corpus import PackedBatch, ResidentCorpus, packed_batches
from zero_copy.errors import UserError
from zero_copy.frozen import gather, kept_vectors
from zero_copy.lowering import Rows, Run, forward_name
from zero_copy.packed_pipe import Losses, packed_corpus
from zero_copy.parameters import Parameters
from zero_copy.tok2vec import PackedUpstream
from zero_copy.transformer_layers import SCHEDULE, Wordpieces, pool_wordpieces
from zero_copy.wordpieces import (
    Group,
    PaddedSpans,
    layout_of,
    refuse_no_model,
    tokenizer_checksum,
)

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# To these a mask may be given for every pair of wordpieces. Given one for every wordpiece they ask
# the device whether it masks anything, and wait for the answer.
TAKE_SQUARE_MASKS = ("bert", "camembert", "roberta", "xlm-roberta")


class PackedTransformer(PackedUpstream, Transformer):
    """spacy-transformers' Transformer for packed examples: one pass for all its listeners.

    vocab (Vocab): The shared vocab.
    model (Model[List[Doc], FullTransformerBatch]): A stock transformer model.
    set_extra_annotations (Callable[[List[Doc], FullTransformerBatch], None]): As in spaCy.
    name (str): Name of the component.
    max_batch_items (int): The largest number of wordpieces, padding included, that go through the
        model at a time. Of larger batches nothing is kept for the way back but what the model
        returned; it is computed once more there.
    half_precision (str): What `mixed_precision` computes in, bfloat16 or float16.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model,
        set_extra_annotations: Callable,
        *,
        name: str = "transformer",
        max_batch_items: int = 4096,
        half_precision: Literal["bfloat16", "float16"] = "bfloat16",
    ) -> None:
        super().__init__(
            *(vocab, model, set_extra_annotations), name=name, max_batch_items=max_batch_items
        )
        self.half_precision = half_precision
        self.is_frozen = False
        self._scheduled: dict[int, Model] = {}
        # By ID of the listener the layer that pools its wordpieces.
        self._pooling: dict[int, Model] = {}
        self._last_spans: PaddedSpans | None = None
        self._known_tokenizer: tuple[Any, str] | None = None

    @property
    def wrapper(self) -> Any:
        """thinc's wrapper of the Hugging Face model."""
        return self.model.layers[0].shims[0]

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.wrapper._hfmodel.tokenizer

    def initialize(
        self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None
    ) -> None:
        """Load the Hugging Face model.

        get_examples (Callable[[], Iterable[Example]]): Packed or ordinary examples.
        nlp (Optional[Language]): The pipeline.
        RAISES (UserError): If there is no such model, or the corpus was packed for another.
        """
        with refuse_no_model(self.model.attrs["name"]):
            super().initialize(get_examples, nlp=nlp)
        corpus = packed_corpus(get_examples)
        if corpus is not None and nlp is not None:
            self.check_corpus(corpus, nlp)

    def check_model(self) -> None:
        """Any model will do: it runs as it is."""

    def find_listeners(self, component: Any) -> None:
        """Connect the listeners of another component.

        component (Any): The component.
        """
        super().find_listeners(component)
        model = getattr(component, "model", None)
        if isinstance(model, Model):
            for parent in model.walk():
                for layer, following in pairwise(parent.layers):
                    if layer in self.listeners:
                        self._pooling[layer.id] = following
                        if SCHEDULE in following.attrs:
                            self._scheduled[following.id] = following

    def check_corpus(self, corpus: ResidentCorpus, nlp: Language) -> None:
        """Make sure that a packed corpus holds the wordpieces that this transformer takes.

        corpus (ResidentCorpus): The corpus.
        nlp (Language): The pipeline.
        RAISES (UserError): If it holds none, others, or the transformer is frozen and was never
            loaded.
        """
        again = "Run `pack` with this config: `python -m spacy project run pack`."
        packed, layout = corpus.info.wordpieces, layout_of(nlp)
        if packed is None:
            raise UserError(f"{corpus.packed.path} holds no wordpieces for {self.name!r}", again)
        if layout is not None and layout.spans != packed.spans:
            raise UserError(
                f"{corpus.packed.path} was packed with other spans than {self.name!r} takes: "
                f"{packed.spans['get_spans']} instead of {layout.spans['get_spans']}",
                again,
            )
        frozen = nlp.config.interpolate()["training"].get("frozen_components", [])
        self.is_frozen = self.name in frozen
        if not self.model.attrs["has_transformer"]:
            if self.is_frozen:
                raise UserError(
                    f"{self.name!r} is frozen, and spaCy initializes no frozen component",
                    "Set [initialize.before_init] to @callbacks = "
                    '"zero_copy.load_transformer.v1", which loads it.',
                )
        elif self._tokenizer_checksum() != packed.tokenizer:
            raise UserError(
                f"{corpus.packed.path} was packed with another tokenizer, that of "
                f"{packed.transformer}, than {self.name!r} has",
                again,
            )

    def _tokenizer_checksum(self) -> str:
        """The checksum of the tokenizer, taken once: it is checked at every evaluation."""
        if self._known_tokenizer is None or self._known_tokenizer[0] is not self.tokenizer:
            self._known_tokenizer = self.tokenizer, tokenizer_checksum(self.tokenizer)
        return self._known_tokenizer[1]

    def update(self, examples: Iterable[Example], **settings: Any) -> Losses:
        """Compute the rows of a batch; each gradient factor takes the next value of its schedule.

        examples (Iterable[Example]): Packed or ordinary examples.
        settings (Any): As of every component. The dropout rate is of no meaning to a Hugging Face
            model, which has rates of its own.
        RETURNS (Dict[str, float]): The losses.
        """
        for layer in self._scheduled.values():
            layer.attrs["grad_factor"] = next(layer.attrs[SCHEDULE])
        return super().update(examples, **settings)

    def predict(self, docs: Iterable[Doc]) -> Any:
        """What the transformer computes; of packed Docs it stays on the device, for the listeners.

        docs (Iterable[Doc]): Packed or ordinary Docs.
        RETURNS (Union[FullTransformerBatch, List[PackedBatch]]): The batches of packed Docs.
        """
        docs = list(docs)
        batches = packed_batches(docs)
        if batches is None or not self.is_frozen:
            return super().predict(docs)
        for batch, listener in product(batches, self.listeners):
            batch.vectors[listener.id] = self._frozen_vectors(batch, listener)
        return batches

    def _frozen_vectors(self, batch: PackedBatch, listener: Model) -> Any:
        """Vectors of a batch's tokens out of those that are kept, pooled as a listener pools."""
        pooling = self._pooling.get(listener.id)
        if pooling is None or any(layer.param_names for layer in pooling.walk()):
            # What is trained can't be kept.
            return self.hand_out(batch, self.compute(batch, is_train=False).detach())

        @torch.no_grad()
        def compute(batch: PackedBatch) -> torch.Tensor:
            # Neither the frozen model nor a pooling without parameters asks for any.
            run = Run(batch, None, self.vocab, is_train=False)  # type: ignore[arg-type]
            rows = self.hand_out(batch, self.compute(batch, is_train=False))
            return pool_wordpieces(pooling, rows, run).data

        names = [forward_name(layer) for layer in pooling.layers[0].walk()]
        identity = f"{self._checksum} {names} {self._half}"
        width = self.model.get_dim("nO")
        return Rows(gather(kept_vectors(batch.corpus, identity, width, compute), batch), False)

    @cached_property
    def _checksum(self) -> str:
        """What identifies the parameters of a frozen transformer."""
        digest = md5(usedforsecurity=False)
        for name, tensor in self.wrapper._model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def _half(self) -> torch.dtype | None:
        """What the model computes in instead of float32, if anything."""
        return HALF[self.half_precision] if self.wrapper._mixed_precision else None

    def _take_over(self, corpus: ResidentCorpus) -> Parameters:
        freeze_unused(self.wrapper._model)
        return super()._take_over(corpus)

    def hand_out(self, batch: PackedBatch, vectors: torch.Tensor) -> Any:
        """What a listener finds: rows of wordpieces, and where those of each token are."""
        return Wordpieces(vectors, self._spans(batch))

    def _spans(self, batch: PackedBatch) -> PaddedSpans:
        if self._last_spans is None or self._last_spans.batch is not batch:
            self._last_spans = PaddedSpans(batch, self.cfg["max_batch_items"])
        return self._last_spans

    def compute(self, batch: PackedBatch, *, is_train: bool) -> torch.Tensor:
        """The rows of a batch's wordpieces, and of their padding, `(rows, width)`."""
        spans, module = self._spans(batch), self.wrapper._model
        tensors: dict[str, torch.Tensor] = {}
        if not self.is_frozen:
            tensors = self.parameters_for(batch.corpus, is_train=is_train).of_module(module)

        def encode(group: Group) -> torch.Tensor:
            # Whatever the model returns beside, its first output is what spaCy calls the last
            # hidden state.
            inputs = self._inputs(spans, group)
            return functional_call(module, tensors, (), inputs)[0].flatten(0, 1)

        def encode_again(group: Group) -> torch.Tensor:
            return checkpoint(encode, group, use_reentrant=False)

        # What does not go through the model at once is not kept for the way back: computed again
        # there it takes the memory of one group, for a third more time.
        keeps = not is_train or spans.rows <= self.cfg["max_batch_items"]
        device = batch.corpus.device
        module.train(is_train)
        with torch.autocast(device.type, self._half, enabled=self._half is not None):
            rows = [(encode if keeps else encode_again)(group).float() for group in spans.groups]
        module.train()  # as thinc leaves it
        return torch.cat([torch.zeros(0, self.model.get_dim("nO"), device=device), *rows])

    def _inputs(self, spans: PaddedSpans, group: Group) -> dict[str, torch.Tensor]:
        inputs = spans.inputs(group)
        mask = inputs["attention_mask"]
        if mask.is_cuda and self.wrapper._model.config.model_type in TAKE_SQUARE_MASKS:
            inputs["attention_mask"] = square(mask)
        return inputs

    def backprop(self, vectors: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add to the gradients of the parameters; in float16 by way of thinc's gradient scaler.

        vectors (torch.Tensor): What `compute` returned.
        gradient (torch.Tensor): Of the same shape, summed over all listeners.
        """
        if self._half != torch.float16:
            vectors.backward(gradient)
            return
        assert self._parameters is not None
        gradients, scaler = self._parameters.gradients, self.wrapper._grad_scaler
        earlier = gradients.clone()
        gradients.zero_()
        vectors.backward(scaler.scale(gradient))
        scaler.unscale([gradients])
        gradients.add_(earlier)

    def finish_update(self, sgd: Optimizer) -> None:
        """Update the parameters, unless gradients in float16 were too large.

        sgd (Optimizer): thinc's optimizer, whose settings and state are used.
        """
        scaler = self.wrapper._grad_scaler
        has_gradient = self._has_gradient and not self._awaits_gradient
        if has_gradient and self._parameters is not None and self._half == torch.float16:
            if scaler.found_inf:
                self._parameters.gradients.zero_()
                self._has_gradient = False
            scaler.update()
        super().finish_update(sgd)


def square(mask: torch.Tensor) -> torch.Tensor:
    """Which wordpieces each wordpiece looks at.

    mask (torch.Tensor): Which wordpieces there are, `(spans, longest)`.
    RETURNS (torch.Tensor): The same for every wordpiece of a span, `(spans, longest, longest)`.
    """
    return mask[:, None].expand(-1, mask.shape[1], -1)


def freeze_unused(module: torch.nn.Module) -> None:
    """Take parameters out of training that the last hidden state does not follow from.

    spaCy never updates those of the pooler, say, as no gradient comes to them.

    module (torch.nn.Module): A Hugging Face model.
    """
    config: Any = module.config
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    device = next(module.parameters()).device
    ids = torch.full((1, 2), config.vocab_size - 1, device=device)
    with torch.enable_grad():
        output = module(input_ids=ids)[0]
        gradients = torch.autograd.grad(output.sum(), [*trained.values()], allow_unused=True)
    for parameter, gradient in zip(trained.values(), gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
