"""The keys: one frozen tree of typed sections, in the order of docs/configuration.md.  No torch here."""

from __future__ import annotations

import codecs
import hashlib
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator
from pydantic.fields import FieldInfo

from spinerl.methods import METHODS
from spinerl.templates import TEMPLATE_OPTIONS_TAKEN

__all__ = ["FILE_ENDING", "PLUGIN_KEYS", "STANDARD_INPUT", "Config", "describe_keys", "fields_of", "value_of"]

_UNLISTED: dict[str, Any] = {"listed": False}
"""Of a field: a threshold that users have no ground to choose.  It can be set, and docs/guard.md names it."""


PLUGIN_KEYS = (
    "reward",
    "vote.weights",
    "vote.views",
    "forks.selector",
    "guard.perturbation",
    "advantage.question_weight",
)
"""Keys that may name a function of the user's own, as `module:function`."""

_NOT_OF_FILES = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined")  # encodings of pieces of text


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def _on_or_off(value: Any) -> Any:
    """YAML reads `off` and `on` as False and True."""
    return {False: "off", True: "on"}[value] if isinstance(value, bool) else value


class ModelConfig(_Section):
    name: str = Field(
        default="tiny-reasoner",
        description="hub name, local folder, GGUF file, or tiny-reasoner, tiny-vlm, smollm2-135m",
    )
    revision: str | None = Field(default=None, description="hub revision (branch, tag or commit)")
    dtype: Literal["auto", "float32", "bfloat16", "mixed"] = Field(
        default="auto",
        description="weights' type; mixed: float32, but matmuls on a CPU with AMX or AVX-512 BF16 round their factors "
        "to bfloat16; auto: bfloat16 on CUDA, else float32, or mixed where a large model's matmuls are measured to be "
        "faster",
    )
    quantize: Literal["none", "4bit"] = Field(
        default="none",
        description="4bit: linear layers in NF4 (bitsandbytes), which do not learn: lora.rank adds what does",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto", description="attention implementation; auto: transformers' choice for the model"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    train_vision: bool = Field(default=False, description="whether the part that sees images learns too")
    image_pixels: int = Field(
        default=1_048_576,
        ge=0,
        description="larger images are shrunk to so many pixels before the model sees them; 0: never",
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory in the update for more time")


class SteerConfig(_Section):
    adapted: str | None = Field(
        default=None,
        description="a smaller adapted model of the same vocabulary (a run, folder or GGUF file): what it learned is "
        "added to the logits of `model`, which only answers (EFT, ProxyThinker)",
    )
    base: str | None = Field(
        default=None, description="the model that one was before it adapted; null: as its run's config.yaml says"
    )
    weight: float = Field(default=1.0, description="of its difference from that in every token's logits")


class LoraConfig(_Section):
    rank: int = Field(
        default=0, ge=0, description="rank of low-rank adapters, the only weights that then learn; 0: all weights learn"
    )
    alpha: float = Field(default=0.0, ge=0, description="adapters count alpha / rank times; 0: twice the rank")
    targets: str = Field(
        default="all-linear",
        description="adapted layers: all-linear, or names as q_proj,v_proj (the output head never)",
    )


class ColumnsConfig(_Section):
    id: str | None = Field(default=None, description="row id; null: column `id` if there, else the row number")
    question: str | None = Field(
        default=None, description="the question's text; null: `question`, `problem`, ... (docs/data.md)"
    )
    gold: str | None = Field(
        default="auto",
        description="gold answer, for evaluation only; auto: `answer`, `solution`, ... if there; null: none",
    )
    choices: str | list[str] | None = Field(
        default="auto",
        description="multiple choice: the column that lists the options, or one column per option; auto: `choices`, "
        "`options` or A, B, C, ... if there; null: none",
    )
    subject: str | None = Field(default=None, description="subject, for tables by subject")
    images: str | None = Field(
        default="auto",
        description="image, or list of images, of the question; auto: `images` or `image` if there; null: none",
    )


FILE_ENDING = re.compile(r"\.(?:jsonl|ndjson|json|csv|tsv|txt|parquet|arrow|feather|gguf)(?:\.(?:gz|zst))?$", re.I)
"""Of a file that names a data set or a model: what a run folder's name leaves out."""
STANDARD_INPUT = "-"
"""As the name of a data set: questions come from standard input."""


class DataConfig(_Section):
    name: str = Field(
        default="tiny/shift-a",
        description="tiny/SUITE, tiny-vqa/SUITE, a file, - for standard input, a benchmark, a hub data set, or a "
        "definition (docs/data.md)",
    )
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"] = Field(
        default="auto", description="what the file holds; auto: by its ending, of standard input by its content"
    )
    encoding: str = Field(
        default="auto",
        description="how the file's text is encoded, as latin-1 or cp1252; auto: UTF-8, or by its byte order mark",
    )
    path: str | None = Field(default=None, description="local file or folder to read instead of the hub's")
    gold: str | None = Field(default=None, description="a separate file of {id, answer} rows, for evaluation only")
    gold_extract: Literal["auto", "none", "hash", "boxed"] = Field(
        default="auto",
        description="how a gold answer is found in its cell: hash: after the last ####; boxed: in the last \\boxed{}; "
        "auto: either, else the whole cell; none: the whole cell",
    )
    split: str | None = Field(default=None, description="split of a hub data set; null: the data set's own, or test")
    config: str | None = Field(default=None, description="configuration (subset) of a hub data set")
    columns: ColumnsConfig = ColumnsConfig()
    image_folder: str | None = Field(
        default=None,
        description="folder that relative image paths start from; null: the data file's, or the data set's own",
    )
    max_image_pixels: int = Field(default=50_000_000, ge=1, description="a larger image is an error (pixels)")
    on_bad_row: Literal["stop", "skip"] = Field(
        default="stop", description="a row that cannot be used: stop with its fault, or leave it out with a count"
    )
    max_questions: int = Field(default=0, ge=0, description="use only the first N questions; 0: all")
    order: Literal["shuffled", "sequential", "easy-to-hard", "nearest", "sift"] = Field(
        default="shuffled",
        description="order of questions: by the initial model's agreement, by nearness to data.target, or by what they "
        "tell about it that those before do not (SIFT)",
    )
    target: str | None = Field(
        default=None, description="data set or file whose questions order=nearest and order=sift prepare for"
    )
    min_agreement: float = Field(
        default=0.0, ge=0, le=1, description="steps take no question whose latest majority is a smaller share (TTC-RL)"
    )
    max_agreement: float = Field(default=1.0, ge=0, le=1, description="nor one whose latest majority is a larger share")
    agreement_every: int = Field(
        default=10, ge=1, description="steps after which min_agreement and max_agreement look again"
    )

    @property
    def by_agreement(self) -> bool:
        """Whether questions are chosen by their latest votes."""
        return self.min_agreement > 0.0 or self.max_agreement < 1.0

    @field_validator("encoding")
    @classmethod
    def _text_encoding(cls, name: str) -> str:
        try:
            "".encode("utf-8" if name == "auto" else name)  # refuses what encodes no text, as hex
            known = name == "auto" or codecs.lookup(name).name.replace("-", "_") not in _NOT_OF_FILES
        except (LookupError, ValueError):
            known = False
        if not known:
            raise ValueError("unknown; allowed: auto, utf-8, latin-1, cp1252, utf-16, ... (Python's text encodings)")
        return name


class ExampleConfig(_Section):
    question: str = Field(description="a worked example's question")
    answer: str = Field(description="the whole response shown for it, reasoning included")


class PromptConfig(_Section):
    system: str | None = Field(default=None, description="system message")
    instruction: str | None = Field(
        default=None, description="answer instruction after the question; null: the answer kind's own; '': none"
    )
    reference_question: bool = Field(
        default=False, description="whether the model that reads a group's responses (CaT) sees the question too"
    )
    examples: list[ExampleConfig] = Field(
        default=[], description="worked examples before the question: {question, answer}"
    )
    chat_template: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        default="auto", description="auto: use it if the tokenizer has one"
    )
    template_options: dict[str, Any] = Field(
        default={}, description="passed to the chat template, e.g. {enable_thinking: false}"
    )
    max_tokens: int = Field(default=4096, ge=1, description="longer prompts are skipped, with a count (tokens)")

    @field_validator("template_options")
    @classmethod
    def _only_the_templates(cls, options: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(TEMPLATE_OPTIONS_TAKEN.intersection(options))
        if taken:
            raise ValueError(f"{taken[0]} is not the template's to take: spinerl gives it itself; leave it out")
        if (fault := _not_plain(options)) is not None:
            raise ValueError(f"holds {fault}; allowed: texts, numbers, true, false, null, lists and mappings of texts")
        return options


def _not_plain(value: Any) -> str | None:
    """What in a value of a recipe is no JSON, or None."""
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            return f"the key {odd!r}, which is no text"
        return next(filter(None, map(_not_plain, value.values())), None)
    if isinstance(value, list):
        return next(filter(None, map(_not_plain, value)), None)
    return None if value is None or isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"


class AnswerConfig(_Section):
    kind: Literal["auto", "math", "number", "choice", "yesno", "text"] = Field(
        default="auto", description="how answers are read from responses (docs/answers.md)"
    )
    truncated: Literal["abstain", "count"] = Field(
        default="abstain", description="whether a truncated response may vote"
    )

    def kind_of(self, own: str) -> str:
        """How the answers to a question of this kind are read: by `kind`, or as its own where that is auto."""
        return own if self.kind == "auto" else self.kind


class RolloutConfig(_Section):
    sampler: Literal["native", "vllm"] = Field(
        default="native", description="what samples; vllm needs the extra spinerl[vllm] (docs/scaling.md)"
    )
    num_votes: int = Field(default=0, ge=0, description="responses that vote, per question; 0: group_size. TTRL: 64")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling; 1: off")
    top_k: int = Field(default=0, ge=0, description="sample among the k likeliest tokens; 0: off")
    min_p: float = Field(default=0.0, ge=0, lt=1, description="drop tokens under min_p times the likeliest; 0: off")
    scored: Literal["full", "truncated"] = Field(
        default="full",
        description="whose log-probabilities the policy term has where top_p, top_k or min_p truncate: the full "
        "distribution's, or those of the truncated and renormalized one that was sampled",
    )
    reuse: int = Field(
        default=1,
        ge=0,
        description="passes over the questions that learn from the same responses; 1: each step samples its own; 0: "
        "all responses are sampled once, before step 1",
    )
    max_new_tokens: int = Field(
        default=1024,
        ge=1,
        description="a longer response is truncated (tokens); so is one that would leave the model's context",
    )
    stop: list[str] = Field(default=[], description="texts that end a response where they appear")
    stop_at_next: bool = Field(
        default=True,
        description="a response to a plain prompt (no chat template) ends where it begins the next Question:",
    )
    importance_cap: float = Field(
        default=2.0,
        ge=0,
        description="sampler=vllm: a token's advantage counts by its probability over the sampler's, at most so often; "
        "0: once",
    )


Part = Literal[
    "shared-prefix",
    "compact",
    "refill",
    "trim",
    "skip",
    "sort",
    "shared-images",
    "cpu",
    "onednn",
    "packed-weights",
    "compiled",
    "activation-reuse",
]
"""What `engine.disable` may list (docs/architecture.md); from "cpu" on, parts only for CPUs."""


class EngineConfig(_Section):
    disable: list[Part] = Field(
        default=[],
        description="parts of the engine to leave out; each saves time or memory and changes no number: "
        + ", ".join(typing.get_args(Part)),
    )
    kv_cache_tokens: int = Field(
        default=0,
        ge=0,
        description="tokens whose keys and values are held at once; 0: what fits in a third of free memory",
    )
    activation_tokens: int = Field(
        default=0,
        ge=0,
        description="on a CPU, tokens whose activations are kept from sampling for the update; 0: what fits in a "
        "quarter of free memory",
    )


class VllmConfig(_Section):
    url: str | None = Field(
        default=None,
        description="a running server, as http://localhost:8000 (docs/scaling.md); null: an engine in the run",
    )
    memory_frac: float = Field(default=0.4, gt=0, le=1, description="share of a GPU's memory for the engine in the run")
    sleep: bool = Field(default=True, description="the engine in the run gives its GPU memory back between rollouts")
    folder: str = Field(
        default="/dev/shm",
        description="where weights lie for a server while it takes them: both must see it, best in memory",
    )
    max_mismatch: float = Field(
        default=0.3,
        gt=0,
        description="a run stops where log-probabilities differ by more from the engine's, on average (nats)",
    )
    options: dict[str, Any] = Field(
        default={}, description="further arguments of vllm.LLM, as {tensor_parallel_size: 2}"
    )


def _names(value: Any) -> Any:
    """A list of names also as one text with commas; `none`, `off` and null are the empty list."""
    if value in (None, False, "none", "off"):
        return []
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class VoteConfig(_Section):
    tie: Literal["abstain", "first", "random"] = Field(default="abstain", description="what a tied vote does")
    min_majority_frac: float = Field(default=0.0, ge=0, le=1, description="smaller majorities give no pseudo-label")
    weights: str = Field(
        default="equal",
        description="a vote's weight in training: equal, probability, certainty, margin (COMPASS), stepwise (SCOPE), "
        "or module:function",
    )
    min_margin: float = Field(default=0.0, ge=0, le=1, description="shares less ahead of the next give no pseudo-label")
    max_shared: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="a vote is void if its answer won a larger share of the step's other questions too, and three at "
        "least; choices, yes and no are left out; 1: never",
    )
    memory: Annotated[Literal["off", "fixed", "sum", "ema"], BeforeValidator(_on_or_off)] = Field(
        default="off",
        description="which earlier votes on a question count too: none; fixed: only the first; sum: all; ema: all, "
        "fading (docs/memory.md)",
    )
    memory_start: int = Field(
        default=0, ge=0, description="with a memory: votes per question by the unadapted model before step 1; 0: none"
    )
    memory_decay: float = Field(default=0.9, gt=0, le=1, description="ema: what an earlier vote weighs one visit later")
    flip_margin: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="with a memory: a label changes where another answer leads it by a larger share",
    )

    slow_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="votes are those of a slow copy, which keeps this share of its weights; 0: off",
    )
    slow_decay_end: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="the share at the last step, reached along a cosine; 0: the same throughout",
    )

    views: Annotated[list[str], BeforeValidator(_names)] = Field(
        default=[],
        description="other ways in which each question is asked in the same step, as many responses each, all voting "
        "together: permuted-options, rephrase, similar, reread, blank, again, augmented-images, or module:function "
        "(docs/views.md)",
    )
    pool: Literal["sum", "harmonic", "average", "own"] = Field(
        default="sum",
        description="with views: sum: votes are added up; harmonic: an answer's shares in them are combined by the "
        "harmonic mean; average: one response to all, of the mean of their next-token distributions (TTAug); own: each "
        "votes for itself, and only the views are trained on (TT-SI)",
    )
    unsure_margin: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="with pool=own: views are asked only of questions whose two leading answers lie less than this "
        "share of the votes apart; 0: of all",
    )
    train_views: bool = Field(
        default=False, description="whether responses to the views are trained on too, or only vote"
    )

    @property
    def rules(self) -> dict[str, Any]:
        """What decides a vote: arguments of `spinerl.answers.vote`."""
        return {"tie": self.tie, "min_majority_frac": self.min_majority_frac, "min_margin": self.min_margin}


class FeedbackConfig(_Section):
    questions: int = Field(
        default=0,
        ge=0,
        description="USES GOLD ANSWERS, only with method=bitta: labels per step, the least certain, to which they say "
        "yes or no",
    )


class AdvantageConfig(_Section):
    scale: Literal["std", "none", "raw", "entropic", "pass-k"] = Field(
        default="std",
        description="std: standardised; none: only centred; raw: the reward itself; entropic: for the best response "
        "(TTT-Discover); pass-k: for one right of k (TTC-RL)",
    )
    k: int = Field(default=8, ge=1, description="of scale=pass-k")
    eps: float = Field(default=1e-6, gt=0, description="added to the standard deviation")
    scope: Literal["group", "batch"] = Field(
        default="group", description="centred within each question, or within the step"
    )
    credit: Literal["response", "prefix-tree"] = Field(
        default="response", description="one advantage per response, or more where responses part (TEMPO)"
    )
    entropy: Literal["none", "reshape"] = Field(
        default="none", description="reshape: certain responses count more (ETTRL)"
    )
    entropy_range: float = Field(
        default=0.0,
        ge=0,
        description="reshape's factor stays within 1 +- this; 0: it is only kept from falling under 0",
    )
    bound: float = Field(default=0.0, ge=0, description="advantages are clipped to +-bound; 0: off")
    question_weight: str = Field(
        default="equal",
        description="what a question's advantages are multiplied by, from its vote: equal, certain (EATA), or "
        "module:function",
    )


class ForksConfig(_Section):
    selector: str = Field(
        default="top-entropy", description="top-entropy, otsu, all, first, low-entropy, random, or module:function"
    )
    fraction: float = Field(
        default=0.2, gt=0, le=1, description="rho: share of tokens that are forks (otsu finds its own)"
    )
    num_tokens: int = Field(default=8, ge=1, description="tokens of each response that selector=first takes")
    scope: Literal["response", "batch"] = Field(
        default="response", description="top rho of each response, or of the batch"
    )


class LossConfig(_Section):
    form: Literal["token", "sequence", "cispo", "nll", "dpo", "calibration"] = Field(
        default="token",
        description="ratios clipped per token, per response (GSPO), or clipped outside the gradient (CISPO); nll: no "
        "ratio, advantage times log-likelihood (fine-tuning); dpo: preference of one response over another (ScPO); "
        "calibration: smooth L1 between P(Yes), asked of a response, and its reward (Self-Calibration)",
    )
    beta: float = Field(default=0.5, gt=0, description="of form=dpo and form=calibration")
    clip_low: float = Field(
        default=0.2, ge=0, le=1, description="ratios under 1 - clip_low are clipped; 1: no lower edge"
    )
    clip_high: float = Field(default=0.2, ge=0, description="ratios over 1 + clip_high are clipped")
    normalizer: Literal["token", "response", "budget", "response-tokens"] = Field(
        default="token",
        description="each term: mean over the update's selected tokens, over its responses' means, or (policy) sum "
        "over a fixed budget; response-tokens, as SPINE prints it: policy, band and entropy over all response tokens "
        "with the mask inside, the anchor a mean over its own",
    )


class AnchorConfig(_Section):
    weight: float = Field(default=0.0, ge=0, description="lambda_KL; 0 keeps no anchor model in memory")
    estimator: Literal["k1", "k2", "k3", "exact"] = Field(default="k3", description="KL estimator")
    scope: Literal["forks", "all"] = Field(default="forks", description="tokens it acts on")
    fisher: float = Field(
        default=0.0,
        ge=0,
        description="alpha of another anchor, on weights: adds alpha sum F (w - initial w)^2, F the initial model's "
        "Fisher information (EATA)",
    )
    fisher_questions: int = Field(
        default=64, ge=0, description="questions by whose responses, one each, F is estimated; 0: all"
    )


class BandConfig(_Section):
    weight: float = Field(default=0.0, ge=0, description="lambda_band; 0: no band")
    weight_low: float | None = Field(
        default=None, ge=0, description="beta_l, weight under the lower edge; null: band.weight"
    )
    weight_high: float | None = Field(
        default=None, ge=0, description="beta_u, weight over the upper edge; null: band.weight"
    )
    low: float = Field(default=0.10, ge=0, le=1, description="quantile of a response's fork entropies: lower edge")
    high: float = Field(default=0.50, ge=0, le=1, description="quantile: upper edge")
    edges: Literal["current", "initial", "ema", "median-mad"] = Field(
        default="current",
        description="whose entropies give the edges; median-mad: the median and 1.4826 median deviations under it "
        "(SPINE's second version) in place of quantiles",
    )
    ema_decay: float = Field(default=0.9, ge=0, lt=1, description="weight of the past in edges=ema")
    shape: Literal["hinge", "squared"] = Field(default="hinge", description="penalty outside the band")

    @property
    def weights(self) -> tuple[float, float]:
        """(under the lower edge, over the upper edge)."""
        low, high = (self.weight if own is None else own for own in (self.weight_low, self.weight_high))
        return low, high

    @property
    def coefficient(self) -> float:
        """The larger of the two weights; 0: no band."""
        return max(self.weights)


class EntropyConfig(_Section):
    weight: float = Field(default=0.0, description="adds weight * mean entropy to the loss: minimised if positive")
    scope: Literal["forks", "all"] = Field(default="all", description="tokens it acts on")


class TreeConfig(_Section):
    bases: int = Field(
        default=0,
        ge=-1,
        description="responses sampled from the prompt, the others branch off them; 0: no tree; -1: as fill the group",
    )
    forks: int = Field(default=3, ge=1, description="tokens of highest entropy at which each of them branches")
    branches: int = Field(default=1, ge=1, description="new responses per such token")


class OptimConfig(_Section):
    lr: float = Field(default=1e-6, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW weight decay")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW")
    eps: float = Field(default=1e-8, gt=0, description="AdamW")
    warmup_steps: int = Field(default=0, ge=0, description="linear warm-up, in optimizer updates")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="after the warm-up; with vote.memory, cosine unless it is given"
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradient clipping; 0: off")
    restore: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="after each update this share of the weights, those with the smallest squared gradients, return to "
        "their initial values (PETAL)",
    )
    epochs: int = Field(default=1, ge=1, description="passes over each rollout")
    minibatches: int = Field(
        default=1, ge=1, description="optimizer updates per pass; the questions are split among them"
    )
    micro_batch_rows: int = Field(
        default=0, ge=0, description="rows per forward and backward; 0: by micro_batch_tokens"
    )
    micro_batch_tokens: int = Field(
        default=8192,
        ge=1,
        description="padded tokens per forward and backward; three times as many where whole layers reuse activations; "
        "on a CPU no more than keep a GiB",
    )
    head_chunk: int = Field(
        default=0, ge=0, description="positions whose logits exist at once; 0: as many as make 64 MiB of logits"
    )


class StreamConfig(_Section):
    on: bool = Field(
        default=False, description="questions come once, a batch of questions_per_step after the other (stream.jsonl)"
    )
    answer: Literal["before", "after", "both"] = Field(
        default="before", description="whether each question is answered before it is adapted on, after it, or both"
    )
    steps_each: int = Field(default=1, ge=1, description="steps on a batch of questions before the next one comes")
    reset_every: int = Field(
        default=0, ge=-1, description="steps after which the initial model comes back; 0: never; -1: with each batch"
    )

    @property
    def episodic(self) -> bool:
        """Whether each batch of questions is adapted to from the initial weights, with which the run ends too."""
        return self.reset_every == -1

    @property
    def steps_between_resets(self) -> int:
        """Steps that follow one another without a reset; 0: there is none."""
        return self.steps_each if self.episodic else self.reset_every

    def batch(self, step: int) -> int:
        """The batch of questions, from 0 up, that a step of a stream takes.

        >>> [StreamConfig(on=True, steps_each=2).batch(step) for step in (1, 2, 3)]
        [0, 0, 1]
        """
        return (step - 1) // self.steps_each


class EvalConfig(_Section):
    every: int = Field(default=0, ge=0, description="steps between evaluations; 0: only before and after")
    samples: int = Field(
        default=-1,
        ge=-1,
        description="sampled responses per question for avg@k and maj@k; -1: group_size; 0: greedy only",
    )
    max_questions: int = Field(default=0, ge=0, description="evaluate on the first N questions; 0: all")
    views: Annotated[list[Literal["augmented-images", "blank", "reread"]], BeforeValidator(_names)] = Field(
        default=[],
        description="the greedy response is decoded from the mean of the distributions of the question and these views "
        "of it (TTAug, docs/views.md)",
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="level of the intervals")


def _guard_mode(value: Any) -> Any:
    value = _on_or_off(value)
    return "rollback" if value == "on" else value


class GuardConfig(_Section):
    mode: Annotated[Literal["off", "warn", "stop", "rollback"], BeforeValidator(_guard_mode)] = Field(
        default="rollback",
        description="without labels: say when adapting does harm, stop there, or bring the best weights back too "
        "(docs/guard.md)",
    )
    every: int = Field(default=5, ge=1, description="steps between two looks at the probe questions")
    questions: int = Field(default=32, ge=2, description="probe questions, asked again and again")
    samples: int = Field(default=8, ge=2, description="initial votes on each of them")
    holdout: int = Field(
        default=0,
        ge=0,
        description="questions that are never adapted to and serve as the probe; 0: it is taken from all",
    )
    perturbation: str = Field(
        default="none",
        description="ask the probe differently too: none, blank, reread, or module:function (str -> str)",
    )
    tolerance: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="rollback keeps the last weights whose score is within this share of the best",
    )
    preflight_questions: int = Field(default=64, ge=0, description="questions that `spinerl preflight` asks; 0: all")
    probe_steps: int = Field(
        default=0,
        ge=0,
        description="steps of a short run at high pressure that `spinerl preflight` takes too, to see when the labels "
        "collapse (URLVR); 0: none",
    )
    pressure: float = Field(default=10.0, ge=1, description="what the learning rate is multiplied by in it")
    no_go: float = Field(default=0.2, ge=0, le=1, description="predicted label accuracy under which nothing is adapted")
    go: float = Field(default=0.4, ge=0, le=1, description="predicted label accuracy from which on adapting is advised")
    lost: float = Field(
        json_schema_extra=_UNLISTED,
        default=0.25,
        ge=0,
        lt=1,
        description="share of its initial support under which, two looks in a row, a run is lost",
    )
    drop: float = Field(
        json_schema_extra=_UNLISTED, default=0.4, gt=0, le=1, description="share of its best score that a run may lose"
    )
    patience: int = Field(
        json_schema_extra=_UNLISTED,
        default=4,
        ge=1,
        description="looks in a row below that, after which a run is past its peak",
    )
    readable: float = Field(
        json_schema_extra=_UNLISTED,
        default=0.75,
        ge=0,
        le=1,
        description="share of its initial readable share under which, two looks in a row, a run stops",
    )
    max_refusals: float = Field(
        json_schema_extra=_UNLISTED,
        default=0.25,
        ge=0,
        le=1,
        description="rise in the share of greedy responses that refuse",
    )
    max_shared: float = Field(
        json_schema_extra=_UNLISTED,
        default=0.5,
        ge=0,
        le=1,
        description="share of the probe questions with one answer; choices, yes and no are left out",
    )
    max_concentration: float = Field(
        json_schema_extra=_UNLISTED,
        default=0.25,
        ge=0,
        le=1,
        description="rise in the chance that two different questions have the same answer",
    )


class CheckpointConfig(_Section):
    every: int = Field(default=10, ge=0, description="steps between checkpoints, and one at the end; 0: none")
    keep: int = Field(
        default=2,
        ge=0,
        description="checkpoints kept; the older ones are deleted; 0: one while the run is under way, none once its "
        "model and report are written",
    )

    @property
    def keep_meanwhile(self) -> int:
        """Checkpoints kept while a run is under way: it goes on from the newest."""
        return max(1, self.keep)


class LogConfig(_Section):
    sample_questions: int = Field(
        default=2,
        ge=0,
        description="questions per logged step whose responses go to samples.jsonl; 0: no samples, no tokens.jsonl",
    )
    sample_responses: int = Field(default=4, ge=1, description="responses logged of each such question")
    alignment: bool = Field(
        default=False,
        description="log in each step the mean cosine between how a layer moved and how far it is from its initial "
        "weights (optim/alignment, GALA); holds two copies of what learns",
    )
    sample_every: int = Field(default=5, ge=1, description="steps between logged samples")
    plan: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        default="auto",
        description="measure for half a minute at the start and say how long the run will take, as `spinerl plan` "
        "does; auto: of models over 50 M parameters",
    )


class TrackConfig(_Section):
    to: Annotated[list[Literal["tensorboard", "wandb", "trackio", "mlflow"]], BeforeValidator(_names)] = Field(
        default=[], description="experiment trackers that show the run, or none (docs/trackers.md)"
    )
    name: str | None = Field(default=None, description="the run's name there; null: its folder's")
    project: str | None = Field(
        default=None, description="project, or MLflow's experiment; null: as the tracker's environment says, or spinerl"
    )


class Config(_Section):
    model: ModelConfig = ModelConfig()
    steer: SteerConfig = SteerConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    method: str = Field(default="spine", description="a row of spinerl.methods: " + ", ".join(METHODS))
    run: str | None = Field(default=None, description="run folder; null: runs/METHOD-MODEL-DATA-seedN")
    seed: int = Field(default=0, ge=0, description="of every random choice in the run")
    steps: int = Field(default=60, ge=0, description="training steps; 0 only evaluates")
    questions_per_step: int = Field(default=8, ge=1, description="questions of one step")
    group_size: int = Field(default=8, ge=1, description="G: responses trained on, per question (paper: 8)")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: one or all, whichever is faster")
    reward: str = Field(
        default="majority",
        description="majority, leave-one-out, frequency, empo, ttrv, evol, scrl, dare, entropy, self-certainty, "
        "compass, scope, exploration, similarity, pairs, constant, reference, none, gold, or module:function",
    )
    prompt: PromptConfig = PromptConfig()
    answer: AnswerConfig = AnswerConfig()
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    vllm: VllmConfig = VllmConfig()
    tree: TreeConfig = TreeConfig()
    vote: VoteConfig = VoteConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    forks: ForksConfig = ForksConfig()
    loss: LossConfig = LossConfig()
    anchor: AnchorConfig = AnchorConfig()
    band: BandConfig = BandConfig()
    entropy: EntropyConfig = EntropyConfig()
    optim: OptimConfig = OptimConfig()
    stream: StreamConfig = StreamConfig()
    guard: GuardConfig = GuardConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    track: TrackConfig = TrackConfig()
    _code_from: dict[str, str] = PrivateAttr(default_factory=dict)
    _code_allowed: bool = PrivateAttr(default=False)

    @property
    def code_from(self) -> dict[str, str]:
        """By key of `named_code`: the file that gave its value, for those that a file gave.

        Empty for a configuration built in Python, and for keys of the command line.
        """
        return dict(self._code_from)

    @property
    def code_allowed(self) -> bool:
        """Whether the user allowed the code that files name (`allow_plugins`)."""
        return self._code_allowed

    @property
    def uses_gold(self) -> bool:
        """Whether training reads gold answers: grpo-gold, and bitta for its yes and no.  Every report says so."""
        return self.reward == "gold" or self.feedback.questions > 0

    @property
    def num_votes(self) -> int:
        """Responses sampled and voting per question: `rollout.num_votes`, or the group size where it is 0."""
        return self.rollout.num_votes or self.group_size

    @property
    def tree_bases(self) -> int:
        """Responses per question that a tree rollout samples from the prompt; 0 where there is no tree."""
        if self.tree.bases >= 0:
            return self.tree.bases
        return self.num_votes // (1 + self.tree.forks * self.tree.branches)

    @property
    def rolls_back(self) -> bool:
        """Whether the guard brings the best weights back in the end; a run that ends with its initial ones has none."""
        return self.guard.mode == "rollback" and not self.stream.episodic

    @property
    def eval_samples(self) -> int:
        """Sampled responses per question in an evaluation."""
        return self.group_size if self.eval.samples < 0 else self.eval.samples

    @property
    def eval_responses(self) -> int:
        """Responses per question that an evaluation decodes: the greedy one, that to each of its views, the samples."""
        return 1 + len(self.eval.views) + self.eval_samples

    @property
    def run_folder(self) -> Path:
        """Where the run lives: `run`, or a name made of the method, the model, the data and the seed."""
        if self.run is not None:
            return Path(self.run)
        model, data = (_slug(name) for name in (self.model.name, self.data.name))
        return Path("runs") / f"{self.method}-{model}-{data}-seed{self.seed}"


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def fields_of(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key of a configuration, unlisted ones too, in order."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def describe_keys(unlisted: bool = False) -> Iterator[tuple[str, str, Any, str]]:
    """(key, type, default, description) of every key, in order; docs/configuration.md is made of it.

    `unlisted`: with those that are in no list, since users have no ground to choose their values.
    """
    for key, field in fields_of():
        if unlisted or field.json_schema_extra is not _UNLISTED:
            yield key, _type_name(field.annotation, field.metadata), field.default, field.description or ""


def _type_name(kind: Any, metadata: Iterable[Any] = ()) -> str:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if origin in (typing.Union, types.UnionType):
        return " | ".join("null" if part is type(None) else _type_name(part) for part in typing.get_args(kind))
    name = "mapping" if origin is dict else kind.__name__
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {value:g}"
        for m in metadata
        for key, sign in signs.items()
        if (value := getattr(m, key, None)) is not None
    ]
    return f"{name} {', '.join(bounds)}".strip()


def _slug(name: str) -> str:
    path = Path(name)
    stem = FILE_ENDING.sub("", path.name)
    base = stem if stem != path.name else "stdin" if name == STANDARD_INPUT else "-".join(path.parts[-2:])
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in base).strip("-") or "data"
    if len(plain.encode()) <= 80:
        return plain
    return f"{plain[:16]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
