"""What a training run depends on besides its clips and the machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from ugsp_net.config import VARIANTS, NetConfig
from ugsp_net.training.data import BatchPlan

LABELS = ("change", "uncertainty")
PRECISIONS = ("auto", "bf16", "fp32")
LABEL_LOSSES = ("cross-entropy", "l1")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run depends on; the defaults are what the shipped weights are trained with."""

    net: NetConfig = field(default_factory=NetConfig)
    plan: BatchPlan = field(default_factory=BatchPlan)
    variant: str = "plain"
    """``plain``, ``distill`` (flow distillation and geometry consistency) or ``refine`` (a network with a refinement,
    and a teacher of its last level that sees the true frame)."""
    steps: int = 20_000
    """Steps of the whole schedule."""
    minutes: float | None = None
    """When set, the schedule follows the clock instead of the steps."""
    seed: int = 0

    rate: float = 5e-4
    """Highest learning rate (AdamW)."""
    rate_last: float = 1e-5
    gate_rate: float = 10.0
    """Learning rate of the mask heads, times that of the rest: their labels move while the network learns."""
    warmup: int = 300
    """Steps of linear rise."""
    weight_decay: float = 1e-4
    precision: str = "auto"
    """Of the network's activations: ``bf16`` (autocast), ``fp32``, or ``auto``: bf16 where the device is fast in it."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: float = 0.999
    """Decay of the averaged weights, which are the ones that ship."""

    prune_from: float = 0.45
    """Share of the schedule from which the pruned branch is trained; 1: never."""
    prune_share: float = 0.5
    """Share of every batch that also goes through the pruned branch."""
    mask_from: float = 0.0
    """Share of the schedule from which the mask heads learn their labels."""
    mask_ramp: float = 0.0
    """Share of the schedule in which the mask terms rise from nothing, from ``mask_from`` on."""
    labels: str = "change"
    """What the mask labels follow: ``change``, what skipping a block would change, or ``uncertainty``, as the paper."""
    compute: float = 0.35
    """Labels by change: mean share of the prunable work to keep, on real crops. Whole clips may keep more or less;
    with 0.5 the development clips kept two thirds."""
    density: tuple[float, float, float] = (0.70, 0.55, 0.45)
    """Labels by uncertainty: mean share of blocks to compute at strides 8, 4, 2. The threshold follows from it: U has
    no natural scale to cut at, and the share is what the cost depends on."""
    relative: float = 0.8
    """How far a block's error is measured by its crop's own: 0 not at all, 1 wholly. What is lost in dB by skipping a
    block depends on the error that the rest of the picture has anyway; a gate, though, sees no more than its
    surroundings."""
    temperature_last: float = 0.4
    """The Gumbel temperature falls from 1 to this while the pruned branch is trained ..."""
    temperature_fall: float = 1.0
    """... by this much over that whole time, if it does not get there earlier."""

    squared_weight: float = 0.02
    """Weight of the logarithm of each crop's mean squared error: what PSNR measures."""
    laplacian_weight: float = 0.15
    auxiliary_weight: float = 0.5
    """Weight of the unpruned branch's reconstruction beside the pruned one's."""
    contrast_weight: float = 1e-2
    """Self-contrast: how far pruning bends the features of the pruned levels."""
    label_weight: float = 0.02
    """0: the masks are not supervised, and follow the reconstruction and the sparsity target alone."""
    label_weight_last: float | None = None
    """Where given, the label weight changes linearly to this from ``prune_from`` to the end."""
    label_loss: str = "cross-entropy"
    """``cross-entropy`` of both branches' logits, or ``l1`` of the pruned branch's masks, as the paper."""
    sparsity_weight: float = 0.02
    uncertainty_weight: float = 0.01
    """Labels by uncertainty: weight of the paper's ``exp(-U) |error| + 2 U``."""
    uncertainty_trains: bool = False
    """Whether that loss also trains the network, as in the paper; it then cares least for the pixels that PSNR counts
    most."""

    flow_weight: float = 0.001
    """Flow supervision by exact synthetic flow and by the optical-flow teacher, per pixel of error, at first; it falls
    to a tenth over the schedule. Little, since the search begins with good flow: 0.02 outweighed the picture."""
    distillation_weight: float = 0.01
    """Variant distill: robust distance to the labelled flow."""
    geometry_weight: float = 0.01
    """Variant distill: distance of the levels' features from those of the true frame."""
    teacher_weight: float = 0.02
    """Variant refine: distance from the flow of the teacher that sees the true frame."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("variant", self.variant, VARIANTS),
            ("labels", self.labels, LABELS),
            ("label_loss", self.label_loss, LABEL_LOSSES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if (self.variant == "refine") != self.net.refine:
            raise ValueError("the variant refine and a network with a refinement need each other")
        if not self.net.any_instant and not self.plan.middle_only:
            raise ValueError("a network of the middle frame alone needs a plan with middle_only")

    @classmethod
    def paper(cls, variant: str = "plain") -> TrainConfig:
        """The paper's settings (section 3.4, and its reference settings): its network, losses, weights and schedules.

        300 epochs of Vimeo90K's 51,312 triplets in batches of 32 are phase 2; phase 1, whose length the paper does not
        give, is half as long here. Both are one schedule, in which the labels are made on the fly by the unpruned
        branch. The reference ramps its mask terms to a tenth over epochs 1 to 16: that tenth is in the weights here.
        """
        epoch = 51_312 // 32
        phase1, phase2 = 150 * epoch, 300 * epoch
        start = phase1 / (phase1 + phase2)
        return cls(
            net=NetConfig.paper(variant),
            plan=BatchPlan(
                size=224,
                context=0,
                batch=32,
                synthetic_first=0,
                synthetic_last=0,
                longest_span=2,
                teacher=variant == "distill",
                middle_only=True,
            ),
            variant=variant,
            steps=phase1 + phase2,
            rate=1e-4,
            rate_last=1e-5,
            gate_rate=1.0,
            warmup=2000,
            weight_decay=0.0 if variant == "distill" else 1e-3,
            prune_from=start,
            prune_share=1.0,
            mask_from=start,
            mask_ramp=16 * epoch / (phase1 + phase2),
            labels="uncertainty",
            density=(0.365, 0.365, 0.365) if variant == "distill" else (0.35, 0.35, 0.35),
            relative=0.0,
            temperature_last=0.4,
            temperature_fall=2.0,  # 1 - epoch / 150
            squared_weight=0.0,
            laplacian_weight=1.0,
            auxiliary_weight=0.5,
            contrast_weight=1e-3,
            label_weight=0.1 * 0.5 / 10,
            label_weight_last=0.1 * 0.1 / 10,
            label_loss="l1",
            sparsity_weight=0.1 * (0.15 if variant == "refine" else 0.1),
            uncertainty_weight=1.0,
            uncertainty_trains=True,
            flow_weight=0.0,
        )
