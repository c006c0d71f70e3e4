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

__all__ = ["METHODS", "Calibration", "Method", "Scans", "Scorer", "fit_concat_bank"]


@dataclass(frozen=True)
class Method:
    """What is said of a method.

    Attributes:
        title: how tables call it.
        scorer: its class.
        banks: names of the banks whose distances it reads.
        stage: of `config.STAGES`, where its training is kept; None: it trains no network.
        is_seeded: whether it depends on the seed.
        modalities: whose features it needs.
        variant_of: the method that it is a variant of, which takes as long for a scan.
        settings: from the settings of a run to its own.
        is_in_paper: whether profile `paper` has it unless told otherwise.
    """

    title: str
    scorer: type[Scorer]
    banks: tuple[str, ...] = ()
    stage: str | None = None
    is_seeded: bool = False
    modalities: tuple[str, ...] = MODALITIES
    variant_of: str | None = None
    settings: Callable[[Config], Config] = lambda config: config
    is_in_paper: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it is G2SF or a variant of it."""
        return self.stage == "lspn"

    @property
    def score_stage(self) -> str:
        """The stage of `config.STAGES` where its scores are kept."""
        return "scores" if self.is_ours else f"{self.stage or 'bank'}_scores"


METHODS = {
    "g2sf": Method("G²SF", Ours, stage="lspn", is_seeded=True),
    "w1": Method("G²SF with w = 1", Unweighted, stage="lspn", is_seeded=True, variant_of="g2sf"),
    "other_pastes": Method(
        "G²SF, other pastes",
        Ours,
        stage="lspn",
        is_seeded=True,
        variant_of="g2sf",
        settings=with_other_pastes,
        is_in_paper=False,  # it would train as long again
    ),
    "rgb": Method("RGB alone", OneBank, ("rgb",), modalities=("rgb",)),
    "pcd": Method("points alone", OneBank, ("pcd",), modalities=("pcd",)),
    "sum": Method("normalised sum", Sum, MODALITIES),
    "product": Method("normalised product", Product, MODALITIES),
    "max": Method("calibrated maximum", Maximum, MODALITIES),
    "concat": Method("concatenated bank", OneBank, ("concat",)),
    "m3dm": Method("M3DM (SVMs)", M3DM, (*MODALITIES, "concat"), is_seeded=True),
    "cfm": Method("CFM", CFM, stage="cfm", is_seeded=True),
    "ast": Method("AST", AST, stage="ast", is_seeded=True, modalities=("rgb",)),
}
