"""G²SF as a method among the others, and what it is with its scale factors left out."""

from torch import Tensor

from g2sf_lib.baselines.scans import Scans, Scorer
from g2sf_lib.config import Config, with_settings
from g2sf_lib.detector import G2SF, CellScores


class Ours(Scorer):
    """G²SF, whose `detector` `experiments.fitted` trains and keeps."""

    detector: G2SF

    def _scores(self, scans: Scans) -> CellScores:
        return self.detector.fuse_cells(scans.standard, *scans.neighbours(self.config.model.k + 1))

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) scores of Eq. 11."""
        return self._scores(scans).cell_score


class Unweighted(Ours):
    """The same with w = 1: the sum of both distances, weighted by the trained sigma."""

    def score_cells(self, scans: Scans) -> Tensor:
        """Return (n,) scores."""
        return self._scores(scans).w1_score


def with_other_pastes(config: Config) -> Config:
    """Return the config with the other kind of pastes: one-sided ones, or in both modalities."""
    other = "both" if config.synthesis.paste_in == "either" else "either"
    return with_settings(config, {"paste_in": other})
