"""A potential in matcalc: its workflows take our calculator, and find what ours find."""

import matcalc
import pytest

import matattn
from matattn.datasets import stillinger_weber
from matattn.workflows.potentials.errors import GPA
from matattn.workflows.potentials.properties import at_rest, elastic_constants

from .test_properties import silicon

pytestmark = pytest.mark.filterwarnings("ignore")

STRAINS = (-0.003, 0.003)  # its own, up to 6 %, leave the linear regime of so small a network


def test_its_elastic_constants_are_ours(trained):
    potential = matattn.load(trained[0] / "model")
    rest = at_rest(potential, silicon(stillinger_weber.LATTICE)).structure
    ours = elastic_constants(potential, rest).clamped  # atoms do not move
    theirs = matcalc.ElasticityCalc(
        potential.calculator(), norm_strains=STRAINS, shear_strains=STRAINS,
        relax_structure=False, relax_deformed_structures=False,
    ).calc(rest)  # fmt: skip
    tensor = GPA * theirs["elastic_tensor"].voigt
    for place in ((0, 0), (0, 1), (3, 3)):
        assert tensor[place] == pytest.approx(ours[place], rel=0.02, abs=0.5)
