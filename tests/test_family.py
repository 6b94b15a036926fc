"""Every system that the family of methods names has a row, a baseline, or a sentence that says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spinerl.methods import ALIASES, METHODS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("method.md", "systems.md", "compare.md", "guard.md")

# Systems that learn or decide without labels, as their sources are named in the literature.
NAMES = """
LMSI; SEALONG; self-consistency; TTC-RL; SIFT; LatentSeek; LatentEvolve; TTAug; TTAdapt; TT-SI; MITT; UPFT; TF-TTCL;
TTT-Discover; PETAL; PSMT; RoTTA; EATA; BiTTA; TTAB; GALA; Self-Calibration; When can LLMs learn with weak
supervision; representation-based exploration; ProxyThinker; EFT; SCRL; Self-Harmony; RO-TTRL; DARE; COMPASS; SCOPE;
RoiRL; ScPO; T3RL; URLVR; Co-rewarding-II; TTRL; ETTRL; EVOL; Compute as Teacher; TEMPO; ASC; short-m@k; SETS;
self-refine; s1; ID-sampling; QAlign; CarBoN; TestNUC; LAME; Adaptive-Consistency; Borda
"""


@pytest.fixture(scope="module")
def said():
    return " ".join(re.sub(r"\s+", " ", (DOCS / page).read_text()) for page in PAGES)


@pytest.mark.parametrize("name", [" ".join(name.split()) for name in NAMES.split(";")])
def test_a_system_is_a_row_a_baseline_or_a_sentence(name, said):
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", said, re.IGNORECASE), (
        f"{name}: give it a row in docs/method.md or docs/compare.md, or say in docs/systems.md why it has none"
    )


def test_every_method_is_described():
    page = (DOCS / "method.md").read_text()
    table = page[page.index("## The family") :]
    assert not [name for name in (*METHODS, *ALIASES) if f"`{name}`" not in table and name != "none"]
