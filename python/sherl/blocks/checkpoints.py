"""Making transformer layers of the checkpoints of model families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._typing import ArrayLike
from ..checks import flag
from . import families
from .families import Family, Naming, layer_roles, own_name

if TYPE_CHECKING:
    from typing import Self

    from .families import Family


class FromCheckpoints:
    """The ways to make a transformer layer of weights that somebody has trained.

    All take ``weights``, a mapping of names relative to the layer to arrays. A frozen layer keeps the caller's arrays
    where they are float32 and C-contiguous and hold the weight of one map; they must not change while it is in use.
    With ``trainable`` they are copied, and training changes the copies. Each raises ValueError where a weight is
    missing, unexpected, of another shape, or not finite.
    """

    @classmethod
    def _of_family(cls, family: Family, weights: Mapping[str, ArrayLike], heads: int, trainable: bool,
                   **settings: Any) -> Self:
        raise NotImplementedError

    @classmethod
    def from_bert(cls, weights: Mapping[str, ArrayLike], heads: int, activation: str = "gelu", eps: float = 1e-12,
                  trainable: bool = False, *, dropout: float = 0.0, attention_dropout: float = 0.0) -> Self:
        """Make a layer of a BERT checkpoint's weights.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the layer, such as ``"attention.self.query.weight"``. A frozen layer keeps the
            caller's arrays where they are float32 and C-contiguous; they must not change while it is in use.
        heads : int
            Attention heads.
        activation : str
            Of the feed-forward part.
        eps : float
            Of the layer norms.
        trainable : bool
            Whether training changes the weights; then they are copied.
        dropout, attention_dropout : float
            Rates in training.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            Where a weight is missing, unexpected, of another shape, or not finite.
        """
        return cls._of_family(families.BERT, weights, heads, trainable, activation=activation, eps=eps,
                              dropout=dropout, attention_dropout=attention_dropout)

    @classmethod
    def from_mpnet(cls, weights: Mapping[str, ArrayLike], heads: int, activation: str = "gelu", eps: float = 1e-5,
                   max_distance: int = 128, trainable: bool = False, *, dropout: float = 0.0,
                   attention_dropout: float = 0.0) -> Self:
        """Make a layer of an MPNet checkpoint's weights: a BERT layer with a bias for relative positions.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the layer, such as ``"attention.attn.q.weight"``, and
            ``"relative_attention_bias.weight"`` of the encoder, which its layers share.
        max_distance : int
            Of a key from a query, from which on all share a bucket.
        heads, activation, eps, trainable, dropout, attention_dropout
            As for `from_bert`.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            As `from_bert`.
        """
        return cls._of_family(families.MPNET, weights, heads, trainable, activation=activation, eps=eps,
                              position_buckets=True, max_distance=max_distance, dropout=dropout,
                              attention_dropout=attention_dropout)

    @classmethod
    def from_vit(cls, weights: Mapping[str, ArrayLike], heads: int, activation: str = "gelu", eps: float = 1e-12,
                 trainable: bool = False, *, dropout: float = 0.0, attention_dropout: float = 0.0) -> Self:
        """Make a layer of a ViT checkpoint's weights, with its norms before the sublayers.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the layer, such as ``"attention.attention.query.weight"``,
            ``"layernorm_before.weight"``.
        heads, activation, eps, trainable, dropout, attention_dropout
            As for `from_bert`.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            As `from_bert`.
        """
        return cls._of_family(families.VIT, weights, heads, trainable, placement="pre", activation=activation, eps=eps,
                              query_bias=None, dropout=dropout, attention_dropout=attention_dropout)

    @classmethod
    def from_clip(cls, weights: Mapping[str, ArrayLike], heads: int, activation: str = "quick_gelu", eps: float = 1e-5,
                  causal: bool = True, trainable: bool = False, *, dropout: float = 0.0,
                  attention_dropout: float = 0.0) -> Self:
        """Make a layer of a CLIP checkpoint's weights.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the layer, such as ``"self_attn.q_proj.weight"``, ``"layer_norm1.weight"``.
        causal : bool
            True for the text tower, whose tokens see those before them; False for the image tower.
        heads, activation, eps, trainable, dropout, attention_dropout
            As for `from_bert`.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            As `from_bert`.
        """
        return cls._of_family(families.CLIP, weights, heads, trainable, placement="pre", activation=activation, eps=eps,
                              causal=causal, dropout=dropout, attention_dropout=attention_dropout)

    @classmethod
    def from_gpt2(cls, weights: Mapping[str, ArrayLike], heads: int, activation: str = "gelu_new", eps: float = 1e-5,
                  trainable: bool = False, *, dropout: float = 0.0, attention_dropout: float = 0.0) -> Self:
        """Make a layer of a GPT-2 checkpoint's weights; its matrices are transposed, so that they are copied.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the layer, such as ``"attn.c_attn.weight"``, ``"ln_1.weight"``.
        heads, activation, eps, trainable, dropout, attention_dropout
            As for `from_bert`.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            As `from_bert`.
        """
        return cls._of_family(families.GPT2, weights, heads, trainable, placement="pre", activation=activation, eps=eps,
                              causal=True, dropout=dropout, attention_dropout=attention_dropout)

    @classmethod
    def from_llama(cls, weights: Mapping[str, ArrayLike], heads: int, theta: float = 10000.0, activation: str = "silu",
                   eps: float = 1e-6, trainable: bool = False, *, dropout: float = 0.0, attention_dropout: float = 0.0,
                   rotary_scaling: Mapping[str, float] | None = None) -> Self:
        """Make a layer of the weights of a Llama, Mistral or Qwen2 checkpoint.

        The heads of keys and values, and which maps have biases, are those of the weights. Positions are rotary, and
        no sliding window narrows what a token sees.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the layer, such as ``"self_attn.q_proj.weight"``, ``"input_layernorm.weight"``.
        theta : float
            Base of the rotary positions' frequencies, ``rope_theta`` of the configuration.
        rotary_scaling : dict of str to float, optional
            As for `TransformerLayer`; of Llama 3.1 ``{"factor": 8.0, "original": 8192, "low": 1.0, "high": 4.0}``.
        heads, activation, eps, trainable, dropout, attention_dropout
            As for `from_bert`; eps of the RMS norms.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            As `from_bert`.
        """
        return cls._of_family(
            families.LLAMA, weights, heads, trainable, placement="pre", norm="rmsnorm", gated=True,
            activation=activation,
            eps=eps, causal=True, key_heads=True, query_bias=None, output_bias=None, feed_forward_bias=None,
            rotary_theta=theta, rotary_scaling=rotary_scaling, dropout=dropout, attention_dropout=attention_dropout,
        )

    @classmethod
    def from_detr(cls, weights: Mapping[str, ArrayLike], heads: int, decoder: bool = False, activation: str = "relu",
                  eps: float = 1e-5, trainable: bool = False, *, dropout: float = 0.0,
                  attention_dropout: float = 0.0) -> Self:
        """Make a layer of a DETR checkpoint's weights, of its encoder or its decoder.

        The layer reads ``positions`` beside x, and a decoder layer also ``memory`` and ``memory_positions``: positions
        are added to what makes queries and keys, not to what makes values.

        Parameters
        ----------
        weights : mapping of str to array_like
            By names relative to the layer: those of Hugging Face, such as ``"self_attn.q_proj.weight"``,
            ``"fc1.weight"``, or those of torch.nn.Transformer, such as ``"self_attn.in_proj_weight"``,
            ``"linear1.weight"``.
        decoder : bool
            Whether the layer attends to a memory.
        heads, activation, eps, trainable, dropout, attention_dropout
            As for `from_bert`.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            As `from_bert`.
        """
        decoder = flag(decoder, "decoder")
        return cls._of_family(
            families.DETR_DECODER if decoder else families.DETR_ENCODER, weights, heads, trainable,
            activation=activation, eps=eps, positions=True, memory_features=decoder or None, memory_positions=decoder,
            dropout=dropout, attention_dropout=attention_dropout,
        )

    @classmethod
    def from_weights(cls, weights: Mapping[str, ArrayLike], heads: int, trainable: bool = False,
                     **settings: Any) -> Self:
        """Make a layer of weights under sherl's own names.

        Parameters
        ----------
        weights : mapping of str to array_like
            By the names that the parameters of a trained layer of these settings have, such as ``"query.weight"``.
        heads : int
            Attention heads.
        trainable : bool
            Whether training changes the weights; then they are copied.
        **settings
            Others of a `TransformerLayer`, but for features, intermediate and head_size. `key_heads`,
            `position_buckets` and `memory_features` may be True: as many as the weights say.

        Returns
        -------
        TransformerLayer

        Raises
        ------
        ValueError
            As `from_bert`.
        """
        every = layer_roles(gated=True, placement="sandwich", layer_scale=True, position_buckets=1, memory=True)
        places = {role.rpartition("_")[0]: own_name(role).rpartition(".")[0] for role in every}
        return cls._of_family(Family("transformer", (Naming(places),)), weights, heads, trainable, **settings)
