"""The sections of a configuration: every key with its type, its bounds, its default and its description.

`config.py` loads and validates them; `docs/configuration.md` and `--help` are generated from the descriptions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

FRAMES = 128  # rows on a video's frame axis (docs/model.md, section 1)
CLIPS = 32  # rows on a video's clip axis
QUERY_TOKENS = 30  # longer queries are truncated to this many tokens

Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Sizes beyond these bounds are typing errors: they would exhaust the memory, or never end.
MAX_COUNT = 1_000_000
MAX_WIDTH = 2**22  # of the model; the paper's is 384, and a wider model than this fails at once for lack of memory
MAX_FEATURE_SIZE = 65_536  # of one row of features; the largest that benchmarks distribute is a few thousand
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
FeatureSize = Annotated[int, Field(ge=1, le=MAX_FEATURE_SIZE)]


def _check_share(value: Any) -> Any:
    """Refuse what is neither a share nor `auto` in one message; pydantic has one for each of the two types."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value == "auto" or (number and 0 <= value <= 1):
        return value
    raise PydanticCustomError("share", "Input should be a number from 0 to 1, or auto")


AutoShare = Annotated[Annotated[float, Field(ge=0, le=1)] | Literal["auto"], BeforeValidator(_check_share)]


class Section(BaseModel):
    """Base class of configuration sections: frozen, without type coercion, unknown keys rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Initialization = Literal["paper", "aligned"]
RegisterSource = Literal["diffusion", "pooling"]
DiffusionStart = Literal["variational", "noise"]


class ModelConfig(Section):
    """The network (docs/model.md, section 2)."""

    registers: int = Field(
        ge=0,
        le=64,
        description="Number of registers per video, K in the paper; 0 disables them. Without registers, fusion "
        "blocks see tokens only, and the variational and denoising losses are 0.",
    )
    diffusion_steps: int = Field(
        ge=1,
        le=1000,
        description="Number of denoising steps that produce the registers, T in the paper. Each step is one pass of "
        "the denoiser, in training and in encoding.",
    )
    register_source: RegisterSource = Field(
        default="diffusion",
        description="How registers are made; `pooling` is an ablation of the paper. `diffusion`: by the truncated "
        "diffusion, as in the paper. `pooling`: register k is the mean of the k-th of K equal parts of the video's "
        "context; the model then has no sampler and no denoiser, and their losses are 0.",
    )
    diffusion_start: DiffusionStart = Field(
        default="variational",
        description="What the diffusion starts from; `noise` is an ablation of the paper. `variational`: the mean of "
        "the variational sampler, as in the paper. `noise`: standard normal noise in its place, drawn for each "
        "video of each training step and the same for all videos in evaluation; the variational loss is then 0.",
    )
    hidden_size: int = Field(
        default=384,
        ge=0,
        le=MAX_WIDTH,
        description="Width of every token and embedding, D in the paper; 0 takes the size of the video features. Must "
        "be even, divisible by `model.heads`, and 8 or more.",
    )
    heads: int = Field(default=4, ge=1, le=256, description="Attention heads per block, H in the paper.")
    branches: int = Field(
        default=8,
        ge=1,
        le=16,
        description="Parallel attention branches in each fusion block, N in the paper. One branch has no Gaussian "
        "width; the others have widths 1/4, 1/2, 1, 2, ...",
    )
    denoiser_layers: int = Field(default=2, ge=1, le=64, description="Residual layers of the denoiser.")
    dropout: Fraction = Field(
        description="Dropout in the attention blocks, the fusion blocks and the registers' input layer."
    )
    input_dropout: Fraction = Field(description="Dropout in the input layers of queries, clips and frames.")
    fusion_temperature: Positive = Field(
        description="Temperature of the softmax that weights the branches at each position; lower values favour a "
        "single branch."
    )
    initialization: Initialization = Field(
        default="paper",
        description="Initial weights: the paper's, or `aligned` for features of a single encoder. `paper`: all linear"
        " weights are drawn from N(0, 0.02). `aligned`: the input layers of queries, clips and frames "
        "start from one orthogonal projection, so that the untrained model already compares queries and "
        "frames as their encoder does. Use `aligned` only if one encoder (CLIP, a sentence encoder) "
        "produced both; video and query features must then have the same size.",
    )

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if 0 < self.hidden_size < 8:
            raise ValueError(f"hidden_size {self.hidden_size} must be 0 (the size of the video features), or 8 or more")
        if self.hidden_size % self.heads or self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be even and divisible by heads {self.heads}")
        return self


class LossWeights(Section):
    """Weights of the loss terms (docs/model.md, section 3). The two triplet terms have weight 1."""

    clip_nce: NonNegative = Field(description="Weight of the contrastive (InfoNCE) loss on clip scores, l_clip.")
    frame_nce: NonNegative = Field(description="Weight of the contrastive (InfoNCE) loss on frame scores, l_frame.")
    diversity: NonNegative = Field(
        description="Weight of the diversity loss, which pushes queries of one video apart, l_div."
    )
    similarity: NonNegative = Field(
        description="Weight of the query similarity loss, a supervised contrastive loss that pulls queries of one "
        "video together, l_qsp."
    )
    variational: NonNegative = Field(
        description="Weight of the KL divergence of the registers' initial distribution from N(0, 1), l_pvs. No "
        "effect without registers."
    )
    denoising: NonNegative = Field(
        description="Weight of the denoiser's loss on text-supervised diffusion, l_dre. No effect without registers."
    )


class LossConfig(Section):
    """Loss weights, margins and negatives (docs/model.md, section 3)."""

    weights: LossWeights
    margin: Positive = Field(description="Margin m of the two triplet losses, in cosine similarity.")
    diversity_margin: float = Field(
        ge=-1, le=1, description="Margin delta of the diversity loss, added to the cosine of each pair of queries."
    )
    diversity_scale: Positive = Field(description="Steepness alpha of the diversity loss around its margin.")
    diversity_focus: NonNegative = Field(
        description="Exponent lambda of the diversity loss: higher values concentrate it on the most similar pairs."
    )
    similarity_temperature: Positive = Field(description="Temperature tau of the query similarity loss.")
    hard_negative_start_epoch: CountOrZero = Field(
        default=20,
        description="Number of epochs before the triplet losses switch from uniform to hard negatives. The loss jumps"
        " there.",
    )
    hard_negative_pool: Count = Field(
        default=20,
        description="With hard negatives, each query's negative is drawn uniformly from this many highest-scoring "
        "other videos.",
    )
    textual_perturbation: bool = Field(
        default=True,
        description="Whether the denoiser's target is a perturbed mean of the video's queries, as in the paper. "
        "Without the perturbation, an ablation of the paper, the target of every register is the mean itself.",
    )


class OptimizerConfig(Section):
    """Adam with linear warm-up and linear decay (docs/model.md, section 4)."""

    learning_rate: Positive = Field(
        description="Peak learning rate, reached after the warm-up; it then decays linearly to 0."
    )
    warmup_fraction: Fraction = Field(default=0.01, description="Share of all training steps spent in linear warm-up.")
    weight_decay: NonNegative = Field(
        default=0.01,
        description="Decoupled weight decay, multiplied by the current learning rate. Biases and the input layers' "
        "norms are not decayed.",
    )


TrimFrames = Literal["exact", "batch"]


class DataConfig(Section):
    """Feature sizes, and how videos with fewer than 128 frames are padded."""

    video_size: FeatureSize = Field(
        description="Size of one video feature vector, Dv. Training reads it from the shards' manifest; this value is"
        " used by `--dry-run` only."
    )
    text_size: FeatureSize = Field(
        description="Size of one query token's feature vector, Dt. Training reads it from the shards' manifest; this "
        "value is used by `--dry-run` only."
    )
    trim_frames: TrimFrames = Field(
        default="exact",
        description="Padding of videos with fewer than 128 frames: `exact` as in the paper, or `batch` for speed. "
        "`exact`: always 128 rows, as in the paper; padded rows count in a video's mean and, as zero "
        "rows, in its maximum over tokens. `batch`: a batch is only as long as its longest video, and "
        "padding never affects a result.",
    )
    weights: dict[str, Share] = Field(
        default={},
        description="Share of a collection's train videos that each epoch is trained on, 0 to 1, by the collection's "
        "name: `{qvh: 1.0, tvr: 0.5}`, or `data.weights.tvr=0.5`. Without a value it is 1, every video once. A smaller "
        "share is drawn for each epoch; it weights collections that are trained on together.",
    )


class TrainingConfig(Section):
    """Epochs, batch, seed, precision and fault tolerance."""

    epochs: Count = Field(description="Maximum number of epochs. The learning rate schedule always spans all of them.")
    patience: CountOrZero = Field(
        description="Training stops once more than this many epochs in a row have not improved the best val SumR."
    )
    choose_epoch: Literal["best", "last"] = Field(
        default="best",
        description="Which epoch's weights are the result: those with the best SumR on val, as in the paper, or those "
        "of the last epoch. `last` suits short trainings and small val splits, of which a lucky epoch would be chosen. "
        "Training then ignores `patience`.",
    )
    batch_videos: Count = Field(
        default=128,
        description="Videos per training step over all workers, each with all its queries. The last batch may be "
        "smaller.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of the weights, the order of videos, dropout and all sampling."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Number format of the matrix products; `auto` uses bf16 where the device supports it. `fp32`: "
        "float32. `bf16`: bfloat16 autocast; scores, losses and the diffusion schedule stay in float32. "
        "`auto`: bf16 on devices with bfloat16 instructions, fp32 on all others, so results can differ "
        "between machines (see docs/reproducibility.md); set `fp32` or `bf16` to compare numbers.",
    )
    with_val: bool = Field(
        default=False,
        description="Train on the val split as well. No split is then left to select an epoch, so the last epoch "
        "counts as the best.",
    )
    max_failures: CountOrZero = Field(
        default=3,
        description="How many times training restarts automatically after losing a worker or a node. It resumes from "
        "the latest checkpoint.",
    )


class EvaluationConfig(Section):
    """How clip scores, frame scores and the encoder's own are combined."""

    clip_weight: float = Field(
        ge=0,
        le=1,
        description="Weight of the clip score in the retrieval score, w_clip; the frame score gets 1 - `clip_weight`.",
    )
    encoder_weight: AutoShare = Field(
        default=0.0,
        description="Weight of the encoder's own score; the model's gets 1 - `encoder_weight`. Only for features of one"
        " encoder. The encoder's score of a query and a video is the mean of four cosines of the "
        "sentence's embedding: with the means of the most similar 1, 5, 15 and 31 frames in a row. 0: "
        "the model alone, as in the paper; 1: the encoder alone. `auto`: chosen after each epoch on val, "
        "close to 0.3 unless val clearly prefers another weight; 0.3 with `training.with_val`.",
    )
