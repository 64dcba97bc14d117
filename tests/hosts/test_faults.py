"""The pick of the tests of faults, with the sites on other hosts."""

from __future__ import annotations

from tests.faults.test_identity import (
    test_a_hostile_process_beside_a_supernode_is_refused_and_the_job_unharmed as test_hostile_process,
)
from tests.faults.test_line import (
    test_short_faults_on_the_way_of_a_model_lose_nothing as test_short_faults,
)
from tests.faults.test_site_lost import (
    test_a_site_that_is_killed_in_training_takes_part_again as test_killed_site,
)

__all__ = ["test_hostile_process", "test_killed_site", "test_short_faults"]
