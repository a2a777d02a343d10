"""Every option: typed, validated, one class per YAML section, a docstring under each field."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from uatmc_dist.errors import UserError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Objective = Literal["sampled", "full_catalog", "softmax"]
UserKind = Literal["row", "history", "both"]
PhaseName = Literal["clean", "adversarial"]
PerturbedRows = Literal["projected", "encoder"]
BackboneName = Literal["vbpr", "vbpr_own_users", "mmgcn"]
AdversaryName = Literal[
    "none",
    "noise",
    "amr",
    "visual_only",
    "text_only",
    "uat",
    "uat_mc",
    "user_coordination",
    "conditional_gradient",
    "certified",
]
TableOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd"]

AttackName = Literal[
    "fgsm",
    "pgd",
    "apgd",
    "exact_user",
    "exact_group",
    "coordinated",
    "anti_aligned",
    "visual_only",
    "text_only",
    "square",
    "transfer",
]
ContentAttackName = Literal[
    "pixels", "insa", "expa", "transfer", "copy_photo", "words", "stuffing", "copy_text", "both"
]
PixelLoss = Literal["best_row", "log_hinge", "soft_rank"]
FileFormat = Literal["png", "jpeg95", "jpeg75", "webp"]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
METRIC_KS = (5, 10, 20, 50)
METRICS = tuple(f"{name}@{k}" for name in ("recall", "ndcg", "precision", "map") for k in METRIC_KS)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """The backbone."""

    backbone: BackboneName = "vbpr"
    """vbpr: users have one content half, which meets the fused content. vbpr_own_users: one for each modality, so that
    different users can make up the gradients of the two. mmgcn: graph convolutions over users and items, one for each
    modality."""
    embedding_dim: Positive = 64
    """Width d of an item's identity half and of its content half; users carry 2d, or 3d with vbpr_own_users."""
    user: UserKind = "row"
    """What a user's vector is. row: a learned row of his own (VBPR). history: learned rows of his training items,
    summed and divided by the square root of their number; new users need no training. both: the sum of the two."""
    content: bool = True
    """Use visual and textual content. Off: BPR-MF, identity embeddings alone."""
    visual_hidden: list[Positive] = [1024, 256]
    """Hidden widths of the visual projector, each followed by ReLU and LayerNorm."""
    text_hidden: list[Positive] = [256]
    """Hidden widths of the textual projector."""
    preference: Literal["trained", "frozen"] = "trained"
    """mmgcn: whether the users' preferences of a modality train. frozen: random and fixed, as in the public codes."""
    initial: Literal["random", "content"] = "random"
    """What training starts from. random: seeded weights. content: nearest neighbours by content; projectors are the
    principal components of the features (no hidden layers then), the fusion is their sum, and the content half of
    a history's row is that of the item itself."""

    @model_validator(mode="after")
    def _components_are_linear(self) -> "ModelConfig":
        if self.content and self.initial == "content" and (self.visual_hidden or self.text_hidden):
            raise ValueError(
                "model.initial content needs linear projectors; set model.visual_hidden=[] and model.text_hidden=[]"
            )
        return self

    @model_validator(mode="after")
    def _mmgcn_is_a_graph(self) -> "ModelConfig":
        if self.backbone == "mmgcn" and (self.user, self.content, self.initial) != ("row", True, "random"):
            raise ValueError(
                "model.backbone mmgcn has users and content of its own kind; set model.user=row model.content=true "
                "model.initial=random"
            )
        return self


class TablesConfig(Section):
    """TorchRec row-wise sharded embedding tables and their in-backward optimiser."""

    optimizer: TableOptimizer = "adagrad"
    """Fused optimiser; runs inside backward, on the rows that the step touched."""
    lr: Rate = 0.05
    """Learning rate of the tables."""
    init_std: Rate = 0.05
    """Standard deviation of the normal initial rows."""


class TrainingConfig(Section):
    """What both phases share."""

    batch_size: Positive = 2048
    """User-positive pairs in a global batch, over all ranks."""
    lr: Rate = 1e-3
    """Learning rate of the dense parameters (AdamW)."""
    weight_decay: Weight = 0.0
    """AdamW weight decay of the dense parameters."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rates of dense parameters and tables fall from their start to zero over a phase."""
    warmup_steps: Count = 0
    """Steps over which the learning rates rise linearly from zero at the start of a phase."""
    reg_weight: Weight = 1.0
    """Weight of the regulariser of the batch's user vectors and item identities, over the batch size."""
    reg_kind: Literal["frobenius", "squared"] = "frobenius"
    """frobenius: norms of the batch's users and items, as published. squared: their squares, which pull
    a row as often as it occurs."""
    history_dropout: Share = 0.3
    """Share of a user's history that a training pair leaves out at random; model.user history and both."""
    score_precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of user and item embeddings in the score passes. Sums are kept in float32, and so are the weights
    that train (bf16 concerns full_catalog and softmax)."""
    popularity_correction: Weight = 0.0
    """softmax: in training an item's scores are raised by this times the log of (1 + its training interactions), so
    that the model itself has to say less of popularity and ranks rare items higher (logit adjustment, arXiv
    2007.07314)."""
    popularity_correction_cap: Positive | None = None
    """Interactions from which on items count as equally popular in the correction: rarer ones alone are ranked
    higher. null: no cap."""
    exclude_known_positives: bool = False
    """full_catalog and softmax: leave a user's other training items out of the negatives."""


class CleanConfig(Section):
    """Phase 1: everything trains, projectors included."""

    epochs: Count = 100
    """Passes over the training pairs; 0 leaves the phase out."""
    objective: Objective = "sampled"
    """sampled: BPR with one uniform negative a pair. full_catalog: BPR in which every item is a negative. softmax:
    cross-entropy of the positive among all items."""
    align_weight: Weight = 1.0
    """Weight of the symmetric InfoNCE between the visual and textual rows of the batch's items."""
    patience: Positive | None = 10
    """Evaluations without improvement before the phase ends; the best weights are kept. null: no early
    stopping, the last weights are kept."""


class AdversarialConfig(Section):
    """Phase 2: everything but the projectors trains against the adversary, and with at=encoder they do, too."""

    epochs: Count = 0
    """Passes over the training pairs; 0 leaves the phase out."""
    objective: Objective = "full_catalog"
    """As in the clean phase."""
    lr_factor: Rate = 1.0
    """What the learning rates of dense part and tables are multiplied with: this phase goes on from a trained model,
    with fresh optimisers."""
    adversary: AdversaryName = "uat_mc"
    """none: no perturbation. noise: random directions of full length. uat: every item, both modalities, up the
    loss. visual_only, text_only: the same in one modality. amr: photos alone, with the published budget and weight
    (arXiv 1809.07062). uat_mc: both, coordinated. user_coordination: both, coordinated by what they do to the users'
    scores, from the second of at least two steps on. conditional_gradient: both, each of at least two steps to the
    furthest point along the newest gradient, so that the modalities are coordinated without a lambda. certified: no
    perturbation; every negative's score is raised by the most that the budget can add for the user, in one pass."""
    at: PerturbedRows = "projected"
    """Which rows are perturbed. projected: those behind the projectors, which are frozen. encoder: the encoder's own
    features, before the projectors, which train on and become robust; each step projects all the items that it
    perturbs. Not for uat_mc and certified."""
    whitening: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far users' tastes in photos, and in texts, are spread evenly over all directions before this phase begins, by
    changing the fusion weights: 0 not at all, 1 entirely. A photo that suits everybody is then harder to make."""
    budget: Literal["ball", "any_content"] = "ball"
    """What an adversary may do with a projected feature row. ball: move it by epsilon. any_content: bring it so much of
    the way towards any row of length 1, whatever photo or text; norm does not matter then."""
    epsilon: Rate = 0.05
    """Radius of the ball, as a share of the L2 norm of each projected feature row; with any_content share of the way,
    at most 1. calibrated: what `uatmc calibrate` found on the run of start_from; budget, adversary and weights too,
    but for those given on the command line."""
    visual_weight: Rate = 1.0
    """Epsilon of the photo's rows, as a share of epsilon."""
    text_weight: Rate = 1.0
    """The same for the text's rows."""
    norm: Literal["l2", "linf"] = "l2"
    """Norm of the ball. The sign step of linf is not continuous, so that rounding shows: numbers of ranks
    agree to about 1e-3, not 1e-5."""
    steps: Positive = 1
    """Ascent steps of the adversary, each projected back into the ball."""
    adv_weight: Weight = 5.0
    """Weight of the loss on perturbed items; certified, which has one loss alone, does not use it."""
    adv_align_weight: Weight = 4.0
    """Lambda: weight of the cosine between the modalities (uat_mc, user_coordination)."""
    amr_epsilon: Rate = 0.1
    """Radius of the L2 ball of amr, as published."""
    amr_weight: Weight = 1.0
    """Weight of the loss on perturbed items of amr, as published."""
    projected_precision: Literal["fp32", "bf16"] = "fp32"
    """Number format in which the projected features are kept, in memory and in the catalog's cache."""
    patience: Positive | None = None
    """As in the clean phase. The accuracy of a robust model is not best where it is most robust, hence null."""

    @model_validator(mode="after")
    def _steps_fit(self) -> "AdversarialConfig":
        if self.adversary in ("user_coordination", "conditional_gradient") and self.steps < 2:
            raise ValueError(f"adversarial.adversary {self.adversary} is uat in a single step; set adversarial.steps=2")
        if self.budget == "any_content" and self.epsilon * max(1.0, self.visual_weight, self.text_weight) > 1:
            raise ValueError(
                "adversarial.epsilon, times a modality's weight, is a share of the way with any_content; set it to at "
                "most 1"
            )
        if self.at == "encoder" and (self.adversary == "certified" or self.budget == "any_content"):
            what = "adversary certified" if self.adversary == "certified" else "budget any_content"
            raise ValueError(f"adversarial.{what} is about projected rows of length 1; set adversarial.at=projected")
        if self.at == "encoder" and self.adversary == "uat_mc":
            raise ValueError(
                "adversarial.adversary uat_mc compares rows of one width, which the encoders' are not; set "
                "adversarial.adversary=uat with adversarial.at=encoder"
            )
        return self


class MirrorGradientConfig(Section):
    """Mirror Gradient (arXiv 2402.11262): on some batches the optimiser goes a step back. It goes with any defence."""

    alpha1: Rate = 1.0
    """Weight of the loss in the step forward on these batches."""
    alpha2: Weight = 0.0
    """Weight of the loss in the step back; 0 leaves it out. Published: 0.1 to 0.3."""
    beta: Positive = 3
    """The step back is taken on every beta-th batch of an epoch, from the first."""


class EngineConfig(Section):
    """DeepSpeed engine of the dense parameters."""

    zero_stage: Literal[0, 1, 2] = 0
    """ZeRO stage: 0 replicates, 1 shards optimiser state, 2 shards gradients too."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the dense parameters."""
    gradient_clipping: Weight = 0.0
    """Largest norm of the dense gradient; 0 does not clip."""

    @model_validator(mode="after")
    def _bf16_needs_sharded_state(self) -> "EngineConfig":
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("engine.precision bf16 needs engine.zero_stage 1 or 2 (stage 0 takes one step too many)")
        return self


class EvaluationConfig(Section):
    """Full ranking over all items with the user's training items masked."""

    every_epochs: Positive = 1
    """Epochs between two evaluations on the valid split."""
    metric: str = "recall@20"
    """Metric of early stopping: recall, ndcg, precision or map at 5, 10, 20 or 50."""
    users_per_batch: Positive = 1024
    """Users ranked at a time."""
    attack_epsilon: Rate | None = None
    """With each evaluation also a cheap attack at this radius (protocol `paper`; PGD on 64 items, for 512 users) and
    its certificate: curves of robustness while a model trains. None: no attack."""

    @model_validator(mode="after")
    def _metric_exists(self) -> "EvaluationConfig":
        if self.metric not in METRICS:
            raise ValueError(f"evaluation.metric {self.metric!r} does not exist{nearest(self.metric, METRICS)}")
        return self


class AttackConfig(Section):
    """Promotion attacks and the certificate; the defaults are protocol `paper` (docs/algorithm.md, section 6)."""

    attacks: list[AttackName] = list(ATTACKS)
    """Which attacks to run."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    budget: Literal["paper", "training"] = "paper"
    """What epsilon means. training: as in training, radius epsilon x L2 norm of the row in either norm. paper: a box
    of that half-width; with norm l2 the smallest ball around the box, larger by the square root of the width."""
    epsilons: list[Rate] = [0.025, 0.05, 0.075, 0.1]
    """Radii of the perturbation, as shares of the L2 norm of the projected feature row."""
    any_content: bool = True
    """Besides, let the targets' rows become any rows of length 1: any photo and any text, without an epsilon."""
    num_targets: Positive = 100
    """Target items a seed, for each stratum (random, cold and popular items)."""
    seeds: list[Count] = list(range(1, 11))
    """Each seed draws targets and anchor users anew."""
    anchor_share: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the users that the attacker optimises for and is measured on."""
    k: Positive = 50
    """Length of the ranking that the target wants to enter."""
    pgd_steps: Positive = 10
    """Steps of PGD and of the coordinated attacks."""
    apgd_steps: Positive = 25
    """Steps of APGD, from each start and with each of its two losses."""
    restarts: Positive = 3
    """Starts of APGD: zero, the best mean direction, then random ones."""
    queries: Positive = 100
    """Queries of the square attack."""
    surrogate: Path | None = None
    """Undefended run on which the transfer attack is made; `start_from` of the run where it is not given."""

    @model_validator(mode="after")
    def _lists_make_sense(self) -> "AttackConfig":
        for name in ("attacks", "seeds", "epsilons"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"attack.{name} is empty; give at least one")
            if len(set(values)) < len(values):
                raise ValueError(f"attack.{name} {values} names one twice; give each once")
        return self


class ContentAttackConfig(Section):
    """Promotion attacks on photos and words, judged by the files that a seller could upload."""

    attacks: list[ContentAttackName] = ["pixels", "words", "both", "copy_photo", "copy_text"]
    """pixels: small changes of the photo. transfer: the same, found on a surrogate run that has another encoder. insa,
    expa: those of the literature (arXiv 2006.01888), towards high scores and towards the photo of the most popular
    item. copy_photo: that photo itself. words: a few edits of the text. stuffing: words of the most popular item's
    title at the end. copy_text: its text. both: pixels and words."""
    pixels: list[Annotated[float, Field(gt=0, le=255)]] = [0.5, 1, 2, 4, 8]
    """Sizes of the change in 1/255: of every pixel (linf), or root mean squares (l2)."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the change."""
    losses: list[PixelLoss] = ["best_row"]
    """What `pixels` and `transfer` climb. best_row: the way to the best row that any photo could have. log_hinge,
    soft_rank: losses of the anchors' own scores. Each of several is climbed, and a target keeps the change that wins
    most anchors."""
    restarts: Positive = 1
    """Climbs for each size: the first from where the size before it ended, the others from random changes of full size;
    again the best is kept."""
    steps: Positive = 24
    """Ascent steps of a climb."""
    edits: list[Positive] = [1, 2, 4, 8]
    """Numbers of words that may be inserted, replaced or deleted."""
    same_kind: bool = False
    """Use only words that texts of items of the same kind use: those whose titles end in the same word."""
    formats: list[FileFormat] = ["png", "jpeg95", "jpeg75", "webp"]
    """Files that the changed photo is written to and read back from; jpeg95: JPEG of quality 95."""
    num_targets: Positive = 50
    """Random target items a seed."""
    seeds: list[Count] = [1]
    """Each seed draws targets and anchor users anew, as attack.seeds do."""
    surrogate: Path | None = None
    """Run that the attacker of transfer has instead: on a catalog of the same files, with another encoder."""

    @model_validator(mode="after")
    def _lists_make_sense(self) -> "ContentAttackConfig":
        for name in ("attacks", "pixels", "losses", "edits", "formats", "seeds"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"content_attack.{name} is empty; give at least one")
            if len(set(values)) < len(values):
                raise ValueError(f"content_attack.{name} {values} names one twice; give each once")
        for name in ("pixels", "edits"):
            if getattr(self, name) != sorted(getattr(self, name)):
                raise ValueError(f"content_attack.{name} {getattr(self, name)}: give the smaller ones first")
        if "both" in self.attacks and not {"pixels", "words"} <= set(self.attacks):
            raise ValueError("content_attack.attacks both is made of pixels and words; add them")
        if "transfer" in self.attacks and self.surrogate is None:
            raise ValueError("content_attack.attacks transfer needs content_attack.surrogate=RUN")
        return self


class CheckpointConfig(Section):
    """Resumable checkpoints, loadable at any world size."""

    every_steps: Positive = 500
    """Steps between two checkpoints; the end of a phase, Ctrl-C and SIGTERM save one too. Training goes on while one
    is written."""
    keep: Positive = 2
    """Newest checkpoints kept; the best one of early stopping is kept besides."""


class DistributedConfig(Section):
    """How the ranks of a run live together."""

    timeout_s: Positive = 600
    """Longest wait for the other ranks; a rank that waits longer gives up, and torchrun starts all of them again where
    --max-restarts allows."""


class LoggingConfig(Section):
    """metrics.jsonl, TensorBoard and the progress line."""

    every_steps: Positive = 10
    """Steps between two lines of metrics.jsonl."""


class Config(Section):
    """One run."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the run, that of one folder: output_dir/name."""
    catalog: Path
    """Folder of the catalog (made by `uatmc data ...`)."""
    output_dir: Path = Path("runs")
    """Folder of all runs."""
    seed: Count = 0
    """Seed of the initial weights, the order of the pairs and the negatives."""
    start_from: Path | None = None
    """Run whose final model the adversarial phase starts from; the clean phase is left out."""
    model: ModelConfig = ModelConfig()
    """The backbone."""
    tables: TablesConfig = TablesConfig()
    """Sharded embedding tables."""
    training: TrainingConfig = TrainingConfig()
    """What both phases share."""
    clean: CleanConfig = CleanConfig()
    """Phase 1."""
    adversarial: AdversarialConfig = AdversarialConfig()
    """Phase 2."""
    mirror_gradient: MirrorGradientConfig = MirrorGradientConfig()
    """Steps back."""
    engine: EngineConfig = EngineConfig()
    """DeepSpeed."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Full ranking."""
    attack: AttackConfig = AttackConfig()
    """Promotion attacks."""
    content_attack: ContentAttackConfig = ContentAttackConfig()
    """Promotion attacks on files."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    distributed: DistributedConfig = DistributedConfig()
    """Ranks."""
    logging: LoggingConfig = LoggingConfig()
    """Logs."""

    @model_validator(mode="before")
    @classmethod
    def _is_calibrated(cls, values: Any, info: ValidationInfo) -> Any:
        adversarial = values.get("adversarial") if isinstance(values, dict) else None
        if not isinstance(adversarial, dict) or adversarial.get("epsilon") != "calibrated":
            return values
        if not values.get("start_from"):
            raise ValueError("adversarial.epsilon calibrated is that of start_from; set start_from=RUN")
        path = Path(str(values["start_from"])) / "calibration.json"
        try:
            recommended = json.loads(path.read_text(encoding="utf-8"))["recommended"]
            options = {} if recommended is None else dict(recommended["options"])
            epsilon = options["epsilon"] if options else None
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is missing or damaged; run `uatmc calibrate {values['start_from']}`") from None
        if not options:
            raise ValueError(f"{path} recommends nothing; calibrate with content_attack.pixels or content_attack.edits")
        options |= {key: value for key, value in adversarial.items() if f"adversarial.{key}" in (info.context or ())}
        return {**values, "adversarial": {**adversarial, **options, "epsilon": epsilon}}

    @model_validator(mode="after")
    def _can_be_attacked_while_it_trains(self) -> "Config":
        if self.evaluation.attack_epsilon is not None and not (self.model.content and self.model.backbone != "mmgcn"):
            raise ValueError(
                "evaluation.attack_epsilon needs content under linear fusion (model.content=true, model.backbone=vbpr "
                "or vbpr_own_users); leave it out"
            )
        return self

    @field_validator("name")
    @classmethod
    def _is_name_of_one_folder(cls, name: str) -> str:
        if name in (".", "..") or name != name.strip() or any(sign in name for sign in "/\\\0"):
            raise ValueError("the name of one folder is needed, without / or \\; output_dir=... says where it lies")
        return name

    @model_validator(mode="after")
    def _phases_make_sense(self) -> "Config":
        if self.model.backbone == "mmgcn":
            if self.engine.precision == "bf16":
                raise ValueError("engine.precision bf16 is not for model.backbone mmgcn; set engine.precision=fp32")
            if self.adversarial.epochs and self.adversarial.adversary == "certified":
                raise ValueError(
                    "adversarial.adversary certified needs linear fusion, which mmgcn has not; set "
                    "adversarial.adversary=uat"
                )
            if self.adversarial.whitening:
                raise ValueError(
                    "adversarial.whitening needs linear fusion, which mmgcn has not; set adversarial.whitening=0"
                )
        if self.adversarial.whitening and self.adversarial.epochs == 0:
            raise ValueError(
                "adversarial.whitening is done as the adversarial phase begins; set adversarial.epochs to at least 1"
            )
        if self.start_from is not None and self.adversarial.epochs == 0:
            raise ValueError("adversarial.epochs is 0, so start_from would train nothing; set it to at least 1")
        if self.start_from is None and self.clean.epochs == 0:
            raise ValueError("clean.epochs is 0 and start_from is not set; set one of them")
        if not self.model.content and self.adversarial.epochs:
            raise ValueError("model.content is off, so there is nothing to perturb; set adversarial.epochs=0")
        return self

    @property
    def is_bpr_mf(self) -> bool:
        """Whether this is the plain factorisation that other models are compared with."""
        return not self.model.content and self.model.user == "row" and self.clean.objective != "softmax"

    @property
    def run_dir(self) -> Path:
        return self.output_dir / self.name


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, or one of configs/ by its name (`default`), and applies dotted overrides (`training.lr=3e-4`).

    Raises UserError naming the file or override, the key, and the nearest known key where there is one.
    """
    path = find_config(path)
    values = read_yaml(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override}: not an override; write section.option=value")
        _set_dotted(values, key, _yaml_value(override, key, text), override)
    return _validated(values, str(path), overrides)


def find_config(path: Path) -> Path:
    """The file itself, or by its name one of configs/: in the checkout, or installed with the package.

    Raises UserError, with the names, for a name that is not there."""
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    here = Path(__file__).parent
    found = {
        file.stem: file for folder in (here / "configs", here.parent / "configs") for file in folder.glob("*.yaml")
    }
    if str(path) not in found:
        raise UserError(
            f"{path}: no such file, and no configuration of that name{nearest(str(path), tuple(found))}; give a YAML "
            f"file, or one of {', '.join(sorted(found))}"
        )
    return found[str(path)]


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a YAML configuration, for example configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the path of a YAML configuration") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no options; a configuration is a mapping such as `name: my-run`")
    return values


def dump_config(config: Config) -> str:
    """YAML of the resolved configuration, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def iterate_options(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, docstring) of every option, in the order of the classes."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from iterate_options(kind, f"{prefix}{name}.")
        else:
            default = (
                "required"
                if field.is_required()
                else yaml.safe_dump(_plain(field.default), default_flow_style=True).removesuffix("\n...\n").strip()
            )
            yield f"{prefix}{name}", _type_name(kind), default, " ".join((field.description or "").split())


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _type_name(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    text = text.replace("typing.", "").replace("pathlib.", "")
    while "Annotated[" in text:  # Annotated[int, ...] reads as int
        start = text.index("Annotated[")
        depth, end = 1, start + len("Annotated[")
        comma = None
        while depth:
            depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(text[end], 0)
            if text[end] == "," and depth == 1 and comma is None:
                comma = end
            end += 1
        text = text[:start] + text[start + len("Annotated[") : comma] + text[end:]
    return text.replace("NoneType", "None")


def _yaml_value(override: str, key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{override}: the value is not valid YAML; quote it") from None
    # name=2024 and catalog=1e5 are words, as whoever types them means.
    means_text = not isinstance(value, str | list | dict | None) and key in _text_options()
    return text if means_text else value


def _text_options() -> set[str]:
    return {key for key, kind, *_ in iterate_options() if kind.removesuffix(" | None") in ("str", "Path")}


def _set_dotted(values: dict[str, Any], key: str, value: Any, override: str) -> None:
    *sections, option = key.split(".")
    for section in sections:
        child = values.setdefault(section, {})
        if not isinstance(child, dict):
            raise UserError(f"{override}: {section} is not a section{nearest(key, _known_keys())}")
        values = child
    values[option] = value


def _source(key: str, file: str, overrides: Sequence[str]) -> str:
    """Who set an option: the last override of it, or the file; both, where a whole section makes no sense."""
    named = [(override.partition("=")[0], override) for override in overrides]
    if exact := [override for name, override in named if f"{key}.".startswith(f"{name}.")]:
        return exact[-1]
    within = [override for name, override in named if name.startswith(f"{key}.")]
    return f"{file} with {' '.join(within)}" if within else file


def _known_keys() -> list[str]:
    return [key for key, *_ in iterate_options()]


def nearest(key: str, known: Sequence[str]) -> str:
    """'; did you mean X?', looking at whole dotted keys first and at their last part next."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        last = key.rsplit(".", 1)[-1]
        by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
        close = [by_last[name] for name in difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.4)]
    return f"; did you mean {close[0]}?" if close else ""


def _validated(values: dict[str, Any], file: str, overrides: Sequence[str] = ()) -> Config:
    try:
        return Config.model_validate(values, context=[override.partition("=")[0] for override in overrides])
    except ValidationError as error:
        raise UserError("; ".join(_describe(problem, file, overrides) for problem in error.errors())) from None


def _describe(problem: Any, file: str, overrides: Sequence[str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    source = _source(key, file, overrides)
    if problem["type"] == "extra_forbidden":
        sections = {known.split(".")[0] for known in _known_keys()}
        return f"{source}: unknown option {key}{nearest(key, [*_known_keys(), *sorted(sections)])}"
    if problem["type"] == "missing":
        return f"{source}: {key} is missing; set it in the file or with {key}=..."
    message = problem["msg"].removeprefix("Value error, ")
    return (
        f"{source}: {key}: {message} (given: {problem['input']!r})"
        if key and problem["type"] != "value_error"
        else (f"{source}: {message}")
    )
