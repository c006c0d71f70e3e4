"""Every method of the comparison, one row each: all that is said of a method is said here.

All of them see the same cells, banks, silhouette rule and post-processing; only the score of a
cell differs. Whoever adds one writes a `Scorer` and its row. Sources: facts.md, section 7.
"""

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
    """What is said of a method."""

    title: str  # how tables call it
    scorer: type[Scorer]
    banks: tuple[str, ...] = ()  # whose distances it reads
    stage: Stage | None = None  # where its training is kept; None: it trains no network
    is_seeded: bool = False
    modalities: tuple[str, ...] = MODALITIES  # whose features it needs
    variant_of: str | None = None  # the method that it takes as long as for a scan
    settings: Callable[[Config], Config] = lambda config: config  # its own, of those of a run
    is_in_paper: bool = True  # whether profile `paper` has it unless told otherwise

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
        code = (_module(self.scorer), *SCORING_CODE)
        return Stage("bank_scores", (BANK,), ("rules", "scoring"), code, self.is_seeded)


def _module(scorer: type[Scorer]) -> str:
    return scorer.__module__.removeprefix("g2sf_lib.").replace(".", "/") + ".py"


def _trained(title: str, scorer: type[Scorer], name: str, **more) -> Method:
    """Return a peer that trains networks on the features behind the banks."""
    code = (_module(scorer), "baselines/loop.py", "baselines/scans.py")
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
    return list(dict.fromkeys(s for row in rows for s in (row.stage, row.score_stage) if s))
