"""Every method of the comparison, one row each: all that is said of a method is said here.

All of them see the same cells, banks, silhouette rule and post-processing; only the score of a
cell differs. Whoever adds one writes a `Scorer` and its row. Sources: facts.md, section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from g2sf_lib.baselines.banks import Calibration, fit_concat_bank
from g2sf_lib.baselines.cfm import CFM
from g2sf_lib.baselines.m3dm import M3DM
from g2sf_lib.baselines.ours import Ours, Unweighted, with_other_pastes
from g2sf_lib.baselines.scans import Scans, Scorer
from g2sf_lib.baselines.simple import Maximum, OneBank, Product, Sum
from g2sf_lib.baselines.student_teacher import AST
from g2sf_lib.config import MODALITIES, Config
from g2sf_lib.stages import BANK, LSPN, SCORES, SCORING_CODE, Stage

__all__ = ["METHODS", "Calibration", "Method", "Scans", "Scorer", "fit_concat_bank", "peer_stages"]


@dataclass(frozen=True)
class Method:
    """What is said of a method.

    Attributes:
        title: how tables call it.
        scorer: its class.
        banks: names of the banks whose distances it reads.
        stage: where its training is kept; None: it trains no network.
        is_seeded: whether it depends on the seed.
        modalities: whose features it needs.
        variant_of: the method that it is a variant of, which takes as long for a scan.
        settings: from the settings of a run to its own.
        is_in_paper: whether profile `paper` has it unless told otherwise.
    """

    title: str
    scorer: type[Scorer]
    banks: tuple[str, ...] = ()
    stage: Stage | None = None
    is_seeded: bool = False
    modalities: tuple[str, ...] = MODALITIES
    variant_of: str | None = None
    settings: Callable[[Config], Config] = lambda config: config
    is_in_paper: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it is G2SF or a variant of it."""
        return self.stage is LSPN

    @property
    def score_stage(self) -> Stage:
        """Where its scores are kept."""
        if self.is_ours:
            return SCORES
        if self.stage is not None:
            return Stage(f"{self.stage.name}_scores", (self.stage,), ("scoring",), SCORING_CODE)
        own = self.scorer.__module__.removeprefix("g2sf_lib.").replace(".", "/") + ".py"
        sections, code = ("rules", "scoring"), (own, *SCORING_CODE)
        return Stage("bank_scores", (BANK,), sections, code, self.is_seeded)


def _trained(title: str, scorer: type[Scorer], name: str, **more) -> Method:
    """Return a peer that trains networks on the features behind the banks."""
    own = scorer.__module__.rpartition(".")[2]
    code = (f"baselines/{own}.py", "baselines/loop.py", "baselines/scans.py")
    stage = Stage(name, (BANK,), (name,), code, is_seeded=True)
    return Method(title, scorer, stage=stage, is_seeded=True, **more)


_OURS = {"stage": LSPN, "is_seeded": True}
METHODS = {
    "g2sf": Method("G²SF", Ours, **_OURS),
    "w1": Method("G²SF with w = 1", Unweighted, variant_of="g2sf", **_OURS),
    "other_pastes": Method(
        "G²SF, other pastes",
        Ours,
        variant_of="g2sf",
        settings=with_other_pastes,
        is_in_paper=False,  # it would train as long again
        **_OURS,
    ),
    "rgb": Method("RGB alone", OneBank, ("rgb",), modalities=("rgb",)),
    "pcd": Method("points alone", OneBank, ("pcd",), modalities=("pcd",)),
    "sum": Method("normalised sum", Sum, MODALITIES),
    "product": Method("normalised product", Product, MODALITIES),
    "max": Method("calibrated maximum", Maximum, MODALITIES),
    "concat": Method("concatenated bank", OneBank, ("concat",)),
    "m3dm": Method("M3DM (SVMs)", M3DM, (*MODALITIES, "concat"), is_seeded=True),
    "cfm": _trained("CFM", CFM, "cfm"),
    "ast": _trained("AST", AST, "ast", modalities=("rgb",)),
}


def peer_stages() -> list[Stage]:
    """Return the stages of all peers, each once: of their training, and of their scores."""
    rows = [row for row in METHODS.values() if not row.is_ours]
    found = [stage for row in rows for stage in (row.stage, row.score_stage) if stage is not None]
    return list(dict.fromkeys(found))
